"""The state of one call, from its request line to its row."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.billing.pricing import PricedCall, Pricing
from gateway.billing.principals import Principal
from gateway.core.usage import ZERO, Usage
from gateway.ledger.row import KeyType, RequestIds, RequestRow, encode
from gateway.providers import Provider
from gateway.proxy.metering import Metered, Watch
from gateway.wire.contract import Format, Reading, RequestFacts
from gateway.wire.formats import FORMATS
from gateway.wire.rewrite import Rewrite
from gateway.wire.target import Target

if TYPE_CHECKING:
    from gateway.proxy.hops import Hop
    from gateway.proxy.progress import Progress
    from gateway.proxy.rolling import RollingHold
    from gateway.proxy.translated import TranslatedAnswer, Translation

PLAIN = "plain"

Ending = Literal[
    "completed",
    "provider_error",  # the provider answered with an error status
    "error_event",  # an error arrived inside a response of status 200
    "truncated",  # the provider's answer stopped before its end
    "upstream_failed",  # no answer: not reached, not HTTP, or reset before the first byte
    "upstream_timeout",
    "client_gone",  # the client left before the end
    "client_stalled",  # the client read nothing more until the time for the call was over
    "balance_exhausted",  # the hold of a stream could not be extended; it was ended with an error event
    "hold_lost",  # the same because Redis did not answer, or had lost the hold
    "cancelled",  # this gateway was shutting down
    "expired",  # the gateway died; the reaper ended the hold
]
BILLED: frozenset[Ending] = frozenset(
    {
        "completed",
        "client_gone",
        "client_stalled",
        "balance_exhausted",
        "hold_lost",
        "truncated",
        "cancelled",
        "error_event",
        "upstream_timeout",
    }
)
"""Endings in which what the provider produced is charged. In the others it produced nothing."""
_AS_ASKED = ("completed", "client_gone", "client_stalled", "truncated")
TEXT_MAX_CHARACTERS = 512
NOTHING = Metered(ZERO, False, Reading())


class Conclusion(msgspec.Struct, frozen=True):
    """What the settle of a call says: made once, sent as often as it takes."""

    row: RequestRow
    priced: PricedCall
    body: bytes
    at_ms: int


def _storable(text: str | None) -> str | None:
    """What a provider says of itself, as PostgreSQL takes it: no NUL, no lone surrogate, no novel."""
    if text is None or (text.isprintable() and len(text) <= TEXT_MAX_CHARACTERS):
        return text
    return "".join(char if char.isprintable() else "?" for char in text[:TEXT_MAX_CHARACTERS])


class Call:
    """What is known of a call. Filled in as the journey goes on."""

    __slots__ = (
        "_row",
        "body",
        "claim",
        "claim_shard",
        "client_dialect",
        "concluded",
        "conclusion",
        "counted",
        "created_us",
        "credential",
        "dispatched_at",
        "ended_at",
        "ending",
        "facts",
        "fallbacks",
        "first_byte_at",
        "format",
        "held",
        "held_nano",
        "http_status",
        "learning",
        "limit",
        "metadata",
        "metered",
        "method",
        "own_key",
        "pricing",
        "principal",
        "progress",
        "progress_at_s",
        "provider_name",
        "renewed_at_s",
        "request_id",
        "rewrite",
        "rolling",
        "settling",
        "started_at",
        "stopped",
        "target",
        "translated",
        "translation",
        "transport",
        "watch",
    )

    def __init__(self, method: str, ids: RequestIds, transport: asyncio.BaseTransport | None = None) -> None:
        self.method = method
        self.transport = transport
        """To the client."""
        self.created_us = time.time_ns() // 1_000
        self.started_at = time.perf_counter()
        self.request_id = ids.new(self.created_us)
        self.target: Target[Provider]
        self.provider_name = ""
        """Of the provider table, else the host."""
        self.principal: Principal
        self.pricing: Pricing | None = None
        """Its prices, from when they were first asked for (`charging.pricing_of`)."""
        self.credential = b""
        """As the caller sent it, without its padding: it must not reach the provider."""
        self.own_key: str | None = None
        """The caller's own, where it is for this provider."""
        self.format: Format = FORMATS[PLAIN]
        """The provider's."""
        self.client_dialect: str | None = None
        """Where the path tells it, which is before the format is known."""
        self.fallbacks: tuple[Hop, ...] = ()
        """Where to go if the first choice fails."""
        self.translation: Translation | None = None
        """Where the provider does not speak the client's dialect."""
        self.translated: TranslatedAnswer | None = None
        self.rewrite: Rewrite | None = None
        """Of a call whose path names the client's dialect and the provider's URL."""
        self.facts = RequestFacts()
        self.metadata: dict[str, str] = {}
        self.body = b""
        self.claim: str | None = None
        self.claim_shard = 0
        self._row: RequestRow | None = None
        self.counted = False
        """Among the merchant's calls of this process."""
        self.held = False
        self.held_nano = 0
        self.concluded = False
        self.settling: asyncio.Future[Any] | None = None
        self.conclusion: Conclusion | None = None
        self.ending: Ending = "completed"
        self.http_status: int | None = None
        self.watch: Watch | None = None
        self.metered: Metered | None = None
        """What was used, of a call that no watch looks at: a response of a realtime session."""
        self.rolling: RollingHold | None = None
        """Of a stream whose hold covers a first step only."""
        self.limit: asyncio.Timeout | None = None
        """Ends the exchange with the provider, while there is one."""
        self.stopped: Ending | None = None
        """Why it was ended from outside."""
        self.renewed_at_s = self.progress_at_s = 0.0
        """On the loop's clock, when the hold was last renewed and progress written on it; 0 before it was seen live."""
        self.progress: Progress | None = None
        self.learning = False
        """Its progress is being learned: a count may wait long for its turn, and one is enough."""
        self.dispatched_at = self.first_byte_at = self.ended_at = 0.0

    def stop(self, ending: Ending, after_s: float = 0.0) -> None:
        """End the exchange with the provider, now or in a while. The first to ask for it decides how the call ended."""
        if self.limit is not None and self.stopped is None:
            self.stopped = ending
            self.limit.reschedule(asyncio.get_running_loop().time() + after_s)

    @property
    def dialect(self) -> str:
        """In which errors are told to the client."""
        return self.client_dialect or self.format.dialect

    def take(self, hop: Hop) -> None:
        """From here on the call is this one."""
        self.target, self.provider_name, self.own_key = hop.target, hop.provider_name, hop.own_key
        if hop.translation is not None:
            self.client_dialect = hop.translation.client
        self.format, self.facts, self.body, self.translation = hop.format, hop.facts, hop.body, hop.translation
        self._row = None

    @property
    def injects_usage(self) -> bool:
        """The provider is asked for a usage chunk that the client did not ask for: it is hidden from the client."""
        provider, facts = self.target.provider, self.facts
        return bool(
            provider
            and provider.inject_usage
            and facts.stream
            and not facts.include_usage
            and self.format.name in ("openai_chat", "openai_completions")
        )

    def descriptor(self) -> RequestRow:
        """The row as known before the call: what the reaper writes if this gateway dies."""
        principal = self.principal
        meter = principal.meter
        self._row = RequestRow(
            merchant_id=principal.merchant.merchant_id,
            request_id=self.request_id,
            created_us=self.created_us + principal.merchant.clock_offset_us,
            billing_mode=principal.mode,
            connection_id=principal.connection_id,
            meter_id=meter.meter_id if meter else None,
            meter_version=meter.version if meter else None,
            provider=self.provider_name,
            provider_key_type=self._key_type(),
            model=self.facts.model,
            endpoint=f"{self.method} {self.target.origin}{self.target.bare_path}",
            status="error",
            ending="expired",
            estimated=True,
            streamed=self.facts.stream,
            metadata=self.metadata,
            spend_key_id=principal.spend.spend_key_id if principal.spend is not None else None,
        )
        return self._row

    def _key_type(self) -> KeyType:
        if self.own_key:
            return "unmanaged"
        stored = self.principal.merchant.stored_keys
        return "stored" if stored is not None and self.provider_name in stored else "managed"

    def encoded_row(self) -> bytes:
        """What a hold says of the call, before anything is known of its answer."""
        return encode(self._row if self._row is not None else self.descriptor())

    def row_so_far(self, usage: Usage, priced: PricedCall, model: str | None, reading: Reading) -> RequestRow:
        """What the reaper writes if this gateway dies now."""
        row = self._row if self._row is not None else self.descriptor()
        return msgspec.structs.replace(
            row,
            model=_storable(model),
            response_id=_storable(reading.response_id),
            service_tier=_storable(reading.service_tier),
            http_status=self.http_status,
            estimated=True,
            usage=usage,
            price_version=priced.version,
            input_cost_nano=priced.input_cost_nano,
            output_cost_nano=priced.output_cost_nano,
            cost_nano=priced.cost_nano,
            passed_on_nano=priced.passed_on_nano,
        )

    def row(self, metered: Metered, priced: PricedCall, model: str | None) -> RequestRow:
        """The finished row: the descriptor, filled in."""
        row = self._row if self._row is not None else self.descriptor()
        row.model = _storable(model)
        row.response_id = _storable(metered.reading.response_id)
        row.service_tier = _storable(metered.reading.service_tier)
        row.ending = self.ending
        row.status = "completed" if self.ending in _AS_ASKED else "error"
        row.http_status = self.http_status
        row.estimated = metered.estimated
        row.usage = metered.usage
        row.price_version = priced.version
        row.input_cost_nano = priced.input_cost_nano
        row.output_cost_nano = priced.output_cost_nano
        row.cost_nano = priced.cost_nano
        row.passed_on_nano = priced.passed_on_nano
        row.duration_us = int((self.ended_at - self.started_at) * 1e6)
        row.first_byte_us = int((self.first_byte_at - self.started_at) * 1e6) if self.first_byte_at else None
        return row
