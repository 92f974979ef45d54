"""What most wire formats have in common: the body goes upstream as it is, the content type decides the framing."""

from __future__ import annotations

from gateway.core.usage import ZERO, Usage
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.meters import FREE, SilentMeter, meter_for
from gateway.wire.reader import Reader


class BaseFormat:
    """A `Format` without `name` and `read_request`. `reader` reads its responses."""

    dialect = "openai"
    reader: type[Reader] = Reader

    def upstream_body(self, body: bytes, facts: RequestFacts, *, inject_usage: bool) -> bytes:
        return body

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        if facts.free:
            return SilentMeter(FREE)
        return meter_for(self.reader(provider), facts, content_type=content_type, limit_bytes=limit_bytes)

    def request_text(self, body: bytes) -> str:
        return ""

    def request_media(self, body: bytes, model: str) -> Usage:
        return ZERO
