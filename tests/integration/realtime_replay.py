"""Recorded realtime sessions, and a provider that plays its side of one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

DIRECTORY = Path(__file__).resolve().parents[3] / "shared" / "recordings" / "realtime"


def recordings(*providers: str) -> list[Path]:
    """Those of OpenAI's protocol."""
    return sorted(path for name in providers for path in DIRECTORY.glob(f"{name}__*.json"))


def frames_of(path: Path) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """(direction, JSON text) of each frame; and what was used."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    # Spaces as no encoder of ours writes them: what passes is what was sent.
    frames = [
        (frame["direction"], json.dumps(frame["data"], separators=(" ,", " : ")))
        for frame in recorded["frames"]
        if frame.get("data") is not None
    ]
    return frames, recorded["expected"]


class ReplayProvider:
    """Sends what the provider sent, and reads what the client had sent, in the order recorded."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, str]] = []
        self.received: list[str] = []
        self.url = ""

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self.received = []
        for direction, text in self.frames:
            if direction == "received":
                await socket.send_str(text)
            else:
                message = await socket.receive(timeout=10)
                assert message.type is WSMsgType.TEXT, message
                self.received.append(message.data)
        await socket.receive(timeout=10)
        return socket

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[ReplayProvider]:
        application = web.Application()
        application.router.add_get("/v1/realtime", self._serve)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()
