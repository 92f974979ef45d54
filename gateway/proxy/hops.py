"""One place a call can be sent to: its first choice, or one that it falls back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.providers import Provider
from gateway.proxy.call import Call
from gateway.proxy.charging import pricing_of
from gateway.proxy.parts import Parts
from gateway.proxy.rolling import RollingHold, first_step
from gateway.wire.contract import Format, RequestFacts
from gateway.wire.target import Target

if TYPE_CHECKING:
    from gateway.proxy.translated import Translation


class Hop(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """All that of a call which depends on where it goes. `Call.take` makes it the call's own."""

    target: Target[Provider]
    provider_name: str
    own_key: str | None
    """The caller's own key, where it is for this provider."""
    format: Format
    """The provider's."""
    facts: RequestFacts
    body: bytes
    translation: Translation | None = None
    """Where the provider does not speak the client's dialect."""


def reserve(parts: Parts, call: Call) -> None:
    """Find what is to be held: the most that the dearest of the call's hops can cost; of a stream, the prompt and a
    first step."""
    call.held_nano, step_tokens = _need(parts, call, call)
    for hop in call.fallbacks:
        call.held_nano = max(call.held_nano, _need(parts, call, hop)[0])
    if step_tokens is not None:
        call.rolling = RollingHold(parts, call, step_tokens)


async def go_to(parts: Parts, call: Call, hop: Hop) -> None:
    """Leave a provider that failed for the next one, under the same hold."""
    if call.rolling is not None:
        await call.rolling.close()
        call.rolling = None
    call.take(hop)
    call.ending, call.http_status, call.first_byte_at = "completed", None, 0.0
    if call.principal.reserves:
        step_tokens = _need(parts, call, call)[1]
        call.rolling = None if step_tokens is None else RollingHold(parts, call, step_tokens)


def _need(parts: Parts, call: Call, hop: Call | Hop) -> tuple[int, int | None]:
    """Nano-dollars, and the output tokens that they cover where not all."""
    meter, step_tokens = call.principal.meter, first_step(parts, hop.format.name, hop.facts)
    pricing = pricing_of(parts, call)
    return (
        pricing.ceiling(hop.provider_name, hop.facts, len(hop.body), meter, output_tokens=step_tokens),
        step_tokens,
    )
