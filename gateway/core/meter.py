"""Pricing rules: what a meter charges for a usage. Pure integers.

Units are whole: tokens, characters, microseconds, requests. A rate is dollars per rate unit (a million
tokens or characters, a minute, a request), held in pico-dollars; a percentage is held in millionths of a percent.

Rounding happens once, half up, at the amount of one request. A meter of one tier prices each request on its own.
Graduated tiers price the step from one running total to the next: R(position + units) - R(position), where R is the
rounded price of everything since the cycle began. The steps telescope, so any order and any batching of the same
units costs the same total (I8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from gateway.core.money import PICO_PER_NANO, divide_half_up, format_pico, parse_pico
from gateway.core.usage import Usage
from gateway.errors import ObolError

RateType = Literal["fixed", "percentage"]
TierType = Literal["tokens_1m", "characters_1m", "minutes", "requests"]
TokenBasis = Literal["input+output", "output"]
Payer = Literal["merchant", "wallet"]

UNITS_PER_RATE_UNIT: dict[str, int] = {
    "tokens_1m": 1_000_000,
    "characters_1m": 1_000_000,
    "minutes": 60_000_000,
    "requests": 1,
}
UNITS_PER_START: dict[str, int] = {"tokens_1m": 1, "characters_1m": 1, "minutes": 60_000_000, "requests": 1}
"""What a tier's `start` of 1 means in units: one token, character, minute, request."""

MICRO_PERCENT = 1_000_000
TIERS_MAX = 32
RATE_MAX_PICO = 10**15
UNITS_MAX = 9 * 10**12
"""Of one request. The scripts divide by it in doubles (lua/includes/exact.lua)."""


class Tier(msgspec.Struct, frozen=True):
    """From `start` units on (exclusive of what lies below), each rate unit costs `rate`."""

    start: int
    rate: int
    """Pico-dollars a rate unit (fixed) or millionths of a percent (percentage)."""


class Line(msgspec.Struct, frozen=True):
    """The part of a charge that fell into one tier. The lines of a charge add up to its fee."""

    tier: Tier
    units: int
    fee_nano: int


class Charge(msgspec.Struct, frozen=True):
    """What one request costs. `amount_nano` is debited from the customer; `fee_nano` is the meter's part of it."""

    amount_nano: int
    fee_nano: int
    units: int
    position: int
    lines: tuple[Line, ...]


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a meter. `definition()` and `from_definition()` are how it is stored and shown."""

    meter_id: str
    version: int
    rate_type: RateType
    tier_type: TierType
    tiers: tuple[Tier, ...]
    token_basis: TokenBasis = "input+output"  # noqa: S105 - tokens of text
    base_cost_payer: Payer = "merchant"
    service_charge_payer: Payer = "merchant"

    @property
    def graduated(self) -> bool:
        """The price of a request depends on what the customer used before it in the cycle."""
        return len(self.tiers) > 1

    def units(self, usage: Usage) -> int:
        """The quantity this meter counts, in whole units."""
        if self.tier_type == "requests":
            return 1
        if self.tier_type == "minutes":
            return (usage.input_us or 0) + (usage.output_us or 0)
        if self.tier_type == "characters_1m":
            return (usage.input_characters or 0) + (usage.output_characters or 0)
        if self.token_basis == "output":  # noqa: S105 - tokens of text
            return usage.output_tokens or 0
        return usage.total_tokens

    def charge(self, usage: Usage, cost_nano: int, position: int = 0) -> Charge:
        """Price `usage` whose provider cost is `cost_nano`, for a customer who used `position` units before."""
        units = self.units(usage)
        fee_nano = self.fee(units, cost_nano, position)
        lines = self._lines(units, fee_nano, position)
        return Charge(self.passed_on(cost_nano) + fee_nano, fee_nano, units, position, lines)

    def passed_on(self, cost_nano: int) -> int:
        """The part of the provider's cost that the customer pays: all of it, or none."""
        return cost_nano if self.base_cost_payer == "wallet" else 0

    def ceiling(self, units: int, cost_nano: int) -> int:
        """No charge of at most `units` and `cost_nano` can exceed this, at whatever position."""
        dearest = max(tier.rate for tier in self.tiers)
        if self.rate_type == "percentage":
            return self.passed_on(cost_nano) + -(-cost_nano * dearest // (100 * MICRO_PERCENT))
        return self.passed_on(cost_nano) + -(-units * dearest // self._denominator)

    @property
    def _denominator(self) -> int:
        return UNITS_PER_RATE_UNIT[self.tier_type] * PICO_PER_NANO

    def fee(self, units: int, cost_nano: int, position: int = 0) -> int:
        """The meter's own price of `units`, without the provider's cost."""
        if self.rate_type == "percentage":
            return self._percentage(units, cost_nano, position)
        if not self.graduated:
            return divide_half_up(units * self.tiers[0].rate, self._denominator)
        return self._running_total(position + units) - self._running_total(position)

    def _percentage(self, units: int, cost_nano: int, position: int) -> int:
        if not self.graduated or units == 0:
            rate = self._slices(position, 1)[0][0].rate
            return divide_half_up(cost_nano * rate, 100 * MICRO_PERCENT)
        weighted = sum(tier.rate * part for tier, part in self._slices(position, units))
        return divide_half_up(cost_nano * weighted, units * 100 * MICRO_PERCENT)

    def _running_total(self, units: int) -> int:
        return divide_half_up(sum(tier.rate * part for tier, part in self._slices(0, units)), self._denominator)

    def _slices(self, position: int, units: int) -> list[tuple[Tier, int]]:
        """The tiers that the units from `position` on fall into, with how many fall into each."""
        found = []
        for index, tier in enumerate(self.tiers):
            end = self.tiers[index + 1].start if index + 1 < len(self.tiers) else position + units
            low, high = max(position, tier.start), min(position + units, end)
            if high > low:
                found.append((tier, high - low))
        return found

    def _lines(self, units: int, fee_nano: int, position: int) -> tuple[Line, ...]:
        """Split the fee over its tiers by weight; what rounding leaves goes to the last line."""
        slices = self._slices(position, units) or [(self._slices(position, 1)[0][0], 0)]
        weights = [tier.rate * part for tier, part in slices]
        total, left, lines = sum(weights), fee_nano, []
        for (tier, part), weight in zip(slices[:-1], weights[:-1], strict=True):
            share = min(left, divide_half_up(fee_nano * weight, total)) if total else 0
            lines.append(Line(tier, part, share))
            left -= share
        return (*lines, Line(slices[-1][0], slices[-1][1], left))

    def definition(self) -> dict[str, Any]:
        """The meter as stored and as the API shows it: rates as decimal strings, starts as numbers."""
        return {
            "rate_type": self.rate_type,
            "tier_type": self.tier_type,
            "token_basis": self.token_basis,
            "base_cost_payer": self.base_cost_payer,
            "service_charge_payer": self.service_charge_payer,
            "tiers": [self.show_tier(tier) for tier in self.tiers],
        }

    def show_tier(self, tier: Tier) -> dict[str, Any]:
        """{"start", "rate", "type"} as the published objects have them."""
        scale = 1 if self.rate_type == "fixed" else MICRO_PERCENT
        return {
            "start": tier.start // UNITS_PER_START[self.tier_type],
            "rate": format_pico(tier.rate * scale),
            "type": self.tier_type,
        }


def from_definition(meter_id: str, version: int, definition: dict[str, Any]) -> Meter:
    """Check a definition as a merchant writes it. Raise ObolError `invalid_request` naming the field.

    `tiers` is a list of {"start": whole number (or its text), "rate": decimal string}; a rate is dollars a rate
    unit, or percent. `base_cost_payer` defaults to "wallet" for a percentage (the customer pays cost plus markup),
    else to "merchant".
    """
    rate_type = _choice(definition, "rate_type", ("fixed", "percentage"), "fixed")
    tier_type = _choice(definition, "tier_type", tuple(UNITS_PER_RATE_UNIT), "tokens_1m")
    payer = "wallet" if rate_type == "percentage" else "merchant"
    return Meter(
        meter_id=meter_id,
        version=version,
        rate_type=rate_type,
        tier_type=tier_type,
        tiers=_tiers(definition.get("tiers"), rate_type, UNITS_PER_START[tier_type]),
        token_basis=_choice(definition, "token_basis", ("input+output", "output"), "input+output"),
        base_cost_payer=_choice(definition, "base_cost_payer", ("merchant", "wallet"), payer),
        service_charge_payer=_choice(definition, "service_charge_payer", ("merchant", "wallet"), "merchant"),
    )


def _choice(definition: dict[str, Any], field: str, allowed: Sequence[str], default: str) -> Any:
    value = definition.get(field)
    if value is None:
        return default
    if value not in allowed:
        raise ObolError("invalid_request", f"{field} must be one of {', '.join(allowed)}", param=field)
    return value


def _tiers(raw: Any, rate_type: str, scale: int) -> tuple[Tier, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= TIERS_MAX:
        raise ObolError("invalid_request", f"tiers must be a list of 1 to {TIERS_MAX} tiers", param="tiers")
    tiers = tuple(_tier(item, f"tiers[{index}]", rate_type, scale) for index, item in enumerate(raw))
    if tiers[0].start != 0:
        raise ObolError("invalid_request", "the first tier must start at 0", param="tiers[0].start")
    for index in range(1, len(tiers)):
        if tiers[index].start <= tiers[index - 1].start:
            raise ObolError("invalid_request", "tiers must start in ascending order", param=f"tiers[{index}].start")
    return tiers


def _tier(item: Any, where: str, rate_type: str, scale: int) -> Tier:
    if not isinstance(item, dict):
        raise ObolError("invalid_request", f"{where} must be an object with start and rate", param=where)
    start, rate = str(item.get("start")), item.get("rate")
    if not start.isascii() or not start.isdigit() or len(start) > 13:
        raise ObolError("invalid_request", f"{where}.start must be a whole number from 0", param=f"{where}.start")
    if int(start) * scale > UNITS_MAX:
        raise ObolError("invalid_request", f"{where}.start is too large", param=f"{where}.start")
    return Tier(int(start) * scale, _rate(str(rate), f"{where}.rate", rate_type))


def _rate(text: str, where: str, rate_type: str) -> int:
    try:
        pico = parse_pico(text)
    except ValueError:
        raise ObolError("invalid_request", f'{where} must be a decimal string such as "0.02"', param=where) from None
    if not 0 <= pico <= RATE_MAX_PICO:
        raise ObolError("invalid_request", f"{where} must be from 0 to {RATE_MAX_PICO // 10**12}", param=where)
    if rate_type == "fixed":
        return pico
    if pico % MICRO_PERCENT:
        raise ObolError("invalid_request", f"{where} may have at most 6 decimal places", param=where)
    return pico // MICRO_PERCENT
