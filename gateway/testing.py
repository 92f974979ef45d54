"""Fakes for tests, ours and those of whoever builds on Obol.

async with FakeProvider() as provider:
    ... point the gateway or an SDK at provider.url ...
    assert provider.requests[0].header("authorization") == "Bearer sk-provider"
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from gateway.local.fake.directive import HEADER, Directive
from gateway.local.fake.records import Record
from gateway.local.fake.replay import Recordings
from gateway.local.fake.server import FakeServer
from gateway.local.fake_provider import listen


class FakeProvider:
    """The fake provider on a free port of the loopback interface, in the running event loop.

    `defaults` steers every answer that does not steer itself; `replay` is a directory of recorded exchanges to serve
    instead (ValueError if it holds something else).
    """

    def __init__(self, defaults: Directive | None = None, *, replay: Path | None = None) -> None:
        self._server = FakeServer(defaults, Recordings.load(replay) if replay else None)
        self._runner = self._server.runner()
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        self.url = await listen(self._runner, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def requests(self) -> list[Record]:
        """The requests seen since the last clear, oldest first, at most 10,000."""
        return self._server.log.latest()

    @property
    def request_count(self) -> int:
        """How many requests were seen since the last clear, those no longer kept among them."""
        return self._server.log.count

    def clear(self) -> None:
        self._server.log.clear()


def steering_header(**fields: Any) -> dict[str, str]:
    """The request header that steers one answer: `steering_header(chunks=50, fault="truncated")`."""
    return {HEADER: orjson.dumps(fields).decode()}


def steering_text(**fields: Any) -> str:
    """The same as a text to put into the last user message."""
    return "[[fake " + " ".join(f"{name}={value}" for name, value in fields.items()) + "]]"
