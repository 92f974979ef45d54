"""What a format knows about its responses, apart from how they are framed.

A `Reader` belongs to one response. A meter (see `meters.py`) shows it the events, or the whole body, that
hold something; it adds up what they say.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.contract import Reading
from gateway.wire.fields import Json, failure, text

_MODEL = re.compile(rb'(?<!\\)"model(?:Version)?"\s*:\s*"([^"\\]{1,200})"')
_BRACKETS = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+([{}\[\]"])', re.DOTALL)


class Reader:
    """The base of all readers: remembers, and finds nothing."""

    usage_key = b'"usage"'
    """The member that holds the usage object, for events above the size limit that cannot be decoded whole."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.usage: Usage | None = None
        self.model: str | None = None
        self.response_id: str | None = None
        self.failed: str | None = None
        self.finished = False
        self.final = False
        """The final usage was seen: the text is no longer needed."""
        self.service_tier: str | None = None
        self.estimated = False
        """`usage` was derived here: see `Reading`."""

    def interesting(self, block: bytes) -> bool:
        """Whether a block of events, or one of them, holds anything to observe. By byte search only."""
        return False

    def observe(self, data: bytes) -> bool:
        """Read one event. True if it is a usage-only chunk, which a client that did not ask must not see."""
        return False

    def observe_body(self, data: bytes) -> None:
        """Read a whole body that was not streamed."""

    def observe_usage(self, usage: Json) -> None:
        """Read a usage object found on its own in an event above the size limit."""

    def identify(self, data: bytes) -> None:
        """Read model and id of an ordinary event: called when a stream ends without usage."""

    def conclude(self) -> None:
        """The response is over, or is being asked about: do what was put off."""

    def event_text(self, data: bytes) -> str:
        """The output text in one event. An error's text is not output."""
        return ""

    def body_text(self, data: bytes) -> str:
        """The output text in a whole body."""
        return ""

    def note(self, model: Any, response_id: Any, service_tier: Any = None) -> None:
        self.model = text(model) or self.model
        self.response_id = text(response_id) or self.response_id
        self.service_tier = text(service_tier) or self.service_tier

    def note_failure(self, error: Any) -> None:
        self.failed = self.failed or failure(error)

    def reading(self) -> Reading:
        return Reading(
            usage=self.usage,
            model=self.model,
            response_id=self.response_id,
            failed=self.failed,
            finished=self.finished,
            service_tier=self.service_tier,
            estimated=self.estimated,
        )

    def salvage(self, data: bytes) -> None:
        """Read model and the last usage object of a piece of JSON whose middle is lost.

        Inside strings quotes are escaped, so an unescaped key is a key.
        """
        if self.model is None and (named := _MODEL.search(data)):
            self.model = named.group(1).decode("utf-8", "replace")
        at = data.rfind(self.usage_key)
        while at > 0 and data[at - 1 : at] == b"\\":
            at = data.rfind(self.usage_key, 0, at)
        start = data.find(b"{", at) if at >= 0 else -1
        if start < 0 or data[at + len(self.usage_key) : start].strip() != b":":
            return
        try:
            self.observe_usage(msgspec.json.decode(data[start : _object_end(data, start)], type=Json))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return


def _object_end(data: bytes, start: int) -> int:
    """The offset just after the object that starts at `start`."""
    depth = 0
    position = start
    while match := _BRACKETS.match(data, position):
        position = match.end()
        depth += 1 if match.group(1) in (b"{", b"[") else -1
        if depth == 0:
            break
    return position


def carries(block: bytes, key: bytes, null: bytes) -> bool:
    """Whether `block` has the member `key` with any value but null; `null` is the member spelled with null."""
    return key in block and block.count(key) != block.count(null)
