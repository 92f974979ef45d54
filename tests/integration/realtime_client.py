"""A client of realtime sessions for tests: says events, hears them, and knows how the session ended."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import WSMsgType
from running import RunningGateway
from yarl import URL

PATH = "/v1/realtime?model=gpt-realtime"
LOUD = b"\x01\x02" * 12_000
"""Half a second of speech (PCM, 24 kHz)."""
QUIET = b"\0" * 4_800


class Closed(Exception):
    """The session ended."""


class Talk:
    """One session, from the client's side."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.heard: list[dict[str, Any]] = []

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def write(self, text: str) -> None:
        """A message of the user's."""
        await self.say(
            "conversation.item.create",
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
        )

    async def speak(self, sound: bytes) -> None:
        await self.say("input_audio_buffer.append", audio=base64.b64encode(sound).decode())

    async def ask(self, text: str, **response: Any) -> dict[str, Any]:
        """Write, have it answered, and return the answer's `response.done`."""
        await self.write(text)
        await self.say("response.create", **({"response": response} if response else {}))
        return await self.until("response.done")

    async def hear(self) -> dict[str, Any]:
        """The next event. Raise Closed."""
        message = await self.socket.receive(timeout=10)
        if message.type is not WSMsgType.TEXT:
            raise Closed(message.type, message.data, message.extra)
        self.heard.append(json.loads(message.data))
        return self.heard[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        while (event := await self.hear())["type"] != kind:
            pass
        return event

    async def end(self) -> tuple[int | None, str]:
        """Hear all that comes; the close code, and the reason."""
        with contextlib.suppress(Closed):
            while True:
                await self.hear()
        return self.socket.close_code, getattr(self, "reason", "")

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.heard]


@contextlib.asynccontextmanager
async def talk(
    gateway: RunningGateway, credential: str, path: str = PATH, *, headers: dict[str, str] | None = None, **more: Any
) -> AsyncIterator[Talk]:
    """A session through the gateway, described by the provider."""
    sent = {"Authorization": f"Bearer {credential}"} if credential else {}
    async with gateway.session.ws_connect(
        URL(gateway.url + path, encoded=True), headers=sent | (headers or {}), **more
    ) as socket:
        one = Talk(socket)
        await one.until("session.created")
        yield one


async def refused(gateway: RunningGateway, credential: str, path: str = PATH, **headers: str) -> tuple[int, Any]:
    """Status and error of a handshake that is refused."""
    sent = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    sent |= {"Authorization": f"Bearer {credential}"} if credential else {}
    async with gateway.session.get(URL(gateway.url + path, encoded=True), headers=sent | headers) as answer:
        body = await answer.read()
        return answer.status, json.loads(body)["error"] if body else {}
