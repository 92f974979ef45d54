"""What a usage is priced as, and how much of an estimate may be charged."""

from __future__ import annotations

import msgspec

from gateway.billing.pricing import Pricing
from gateway.core.usage import Usage
from gateway.prices import PRECEDENCE
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts
from gateway.wire.contract import Reading


def pricing_of(parts: Parts, call: Call) -> Pricing:
    """The prices of the call: those of its beginning until its end, else it could cost more than was held for it."""
    if call.pricing is None:
        call.pricing = parts.pricing.of(call.principal)
    return call.pricing


def priced_model(parts: Parts, call: Call, reading: Reading) -> str | None:
    """The model that answered where it has a price, else the one that was asked for. That one, too, where only it has a
    price of the merchant's or the operator's: providers answer with a dated name, which theirs need not cover."""
    asked, served = call.facts.model, reading.model
    if not served or served == asked:
        return asked
    book = pricing_of(parts, call).book
    answered, wanted = book.found(call.provider_name, served), book.found(call.provider_name, asked) if asked else None
    if answered is None or not answered.price.is_priced:
        return asked or served
    own = wanted is not None and PRECEDENCE.index(wanted.source) > PRECEDENCE.index(answered.source)
    return asked if own else served


def within_hold(parts: Parts, call: Call, usage: Usage, reading: Reading) -> Usage:
    """`usage` with as much of its output as the hold pays for: an estimate takes no wallet beyond what was held."""
    if not call.principal.reserves or not usage.output_tokens:
        return usage
    model = priced_model(parts, call, reading)
    pricing = pricing_of(parts, call)

    def fits(candidate: Usage) -> bool:
        most = pricing.most(call.provider_name, model, candidate, reading.service_tier, call.principal.meter)
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
