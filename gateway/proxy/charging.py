"""What a usage is priced as, and how much of an estimate may be charged."""

from __future__ import annotations

import msgspec

from gateway.core.usage import Usage
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts
from gateway.wire.contract import Reading


def priced_model(parts: Parts, call: Call, reading: Reading) -> str | None:
    """The model that answered where it has a price, else the one that was asked for."""
    served = reading.model
    if served and parts.pricing.book.find(call.provider_name, served) is not None:
        return served
    return call.facts.model or served


def within_hold(parts: Parts, call: Call, usage: Usage, reading: Reading) -> Usage:
    """`usage` with as much of its output as the hold pays for: an estimate takes no wallet beyond what was held."""
    if not call.principal.charged or not usage.output_tokens:
        return usage
    model = priced_model(parts, call, reading)

    def fits(candidate: Usage) -> bool:
        most = parts.pricing.most(call.provider_name, model, candidate, reading.service_tier, call.principal.meter)
        return most <= call.held_nano

    if fits(usage):
        return usage
    low, high = 0, usage.output_tokens
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(_with_output(usage, middle)) else (low, middle)
    return _with_output(usage, low)


def _with_output(usage: Usage, tokens: int) -> Usage:
    """No part of the output is larger than the whole."""
    parts = ("reasoning_tokens", "output_audio_tokens", "output_image_tokens")
    cut = {name: min(part, tokens) for name in parts if (part := getattr(usage, name)) is not None}
    return msgspec.structs.replace(usage, output_tokens=tokens, **cut)
