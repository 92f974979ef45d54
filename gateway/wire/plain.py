"""Calls of which nothing is read: what costs nothing at a known provider, and any other API, priced by the call."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import Meter, Reading, RequestFacts
from gateway.wire.meters import SilentMeter

UNREAD = frozenset({"plain", "http"})
"""The formats whose bodies are passed on as they come, unread."""
PATH_MAX_CHARACTERS = 512
LENGTH_US_AT_MOST = 60_000_000
ANSWER_BYTES_AT_MOST = 8 * 1024 * 1024
"""What is held for an answer whose time or size is priced. Nobody can tell beforehand; more is charged afterwards."""


class Plain(BaseFormat):
    """No usage; the body may be anything."""

    name = "plain"

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        return RequestFacts()

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        return SilentMeter()


class Http(BaseFormat):
    """Any API: its calls, the bytes both ways, and (added where a clock is) the time. Priced by host and path."""

    name = "http"

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        return http_facts(path, len(body))

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        return ByteMeter(facts.usage or Usage())


def http_facts(path: str, body_bytes: int | None) -> RequestFacts:
    """`body_bytes`: as declared; None where the body comes in pieces."""
    return RequestFacts(
        model=path[:PATH_MAX_CHARACTERS],
        usage=Usage(input_bytes=body_bytes),
        at_most=Usage(
            input_tokens=0,
            output_tokens=0,
            input_bytes=body_bytes,
            output_bytes=ANSWER_BYTES_AT_MOST,
            output_us=LENGTH_US_AT_MOST,
        ),
    )


class ByteMeter(SilentMeter):
    """The bytes of the answer as they came, beside those of the request."""

    def __init__(self, asked: Usage) -> None:
        super().__init__()
        self._asked = asked

    def reading(self) -> Reading:
        return Reading(usage=Usage(input_bytes=self._asked.input_bytes, output_bytes=self.seen_bytes))
