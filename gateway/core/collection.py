"""What is charged to a card and when: pure rules over what is recorded of a wallet.

Amounts of usage are nano-dollars, amounts of cards whole cents: rounded up, and the rest stays the customer's, as
credit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

NANO_A_CENT = 10_000_000
CARD_MINIMUM_CENTS = 50
CARD_MAXIMUM_CENTS = 99_999_999
"""What processors charge at least and at most, in US dollars."""

AutomaticKind = Literal["overage", "auto_top_up"]
Pot = Literal["overage", "bundle", "prepaid"]


class Rules(msgspec.Struct, frozen=True):
    """The installation's: overage is charged from `threshold_nano` on, a bundle bought at `top_up_below_nano`."""

    threshold_nano: int
    top_up_below_nano: int


class Bundle(msgspec.Struct, frozen=True):
    """What the subscription buys by itself when the pots are empty."""

    credit_bundle_id: str
    cost_nano: int
    credit_nano: int


class Owing(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet as it is recorded. `pots_nano`: cycle, bundle and prepaid together. `cap_nano`: the overage its plan
    allows, None where its plan charges none. `settling`: whatever is owed is due, because the cycle has ended or the
    card was declined before."""

    pots_nano: int
    overage_nano: int
    cap_nano: int | None
    bundle: Bundle | None
    settling: bool


class Debt(msgspec.Struct, frozen=True):
    """What is to be charged, and what is granted for it."""

    kind: AutomaticKind
    amount_cents: int
    owed_nano: int
    pot: Pot
    credit_nano: int
    credit_bundle_id: str | None = None


def cents_of(nano: int) -> int:
    """Whole cents, rounded up."""
    return -(-nano // NANO_A_CENT)


def debt(owing: Owing, rules: Rules) -> Debt | None:
    """What is due now. The bundle comes before overage: with it the next call is paid."""
    bundle = owing.bundle
    if bundle is not None and owing.pots_nano <= rules.top_up_below_nano and _chargeable(bundle):
        cents = cents_of(bundle.cost_nano)
        return Debt("auto_top_up", cents, bundle.cost_nano, "bundle", bundle.credit_nano, bundle.credit_bundle_id)
    if owing.cap_nano is None or not owing.overage_nano:
        return None
    cents = cents_of(owing.overage_nano)
    if owing.overage_nano >= _due_from_nano(owing.cap_nano, rules):
        cents = max(cents, CARD_MINIMUM_CENTS)
    elif not owing.settling or cents < CARD_MINIMUM_CENTS:
        return None
    cents = min(cents, CARD_MAXIMUM_CENTS)
    return Debt("overage", cents, owing.overage_nano, "overage", cents * NANO_A_CENT)


def watch_nano(owing: Owing, rules: Rules) -> int | None:
    """Nothing being due, the next time it can be: when the pots less the overage have come down to this. None: never.

    Usage takes from the pots first. So they reach a level L with the overage as it is at L - overage, and a higher
    overage O is reached with empty pots, at -O.
    """
    levels = []
    if owing.bundle is not None and _chargeable(owing.bundle):
        levels.append(rules.top_up_below_nano - owing.overage_nano)
    if owing.cap_nano is not None:
        levels.append(-_due_from_nano(owing.cap_nano, rules))
    return max(levels, default=None)


def cap_of(charges_overage: bool, plan_cap_nano: int | None, default_nano: int) -> int | None:
    """The overage that a plan allows a customer whose card can be charged; None where it charges none."""
    if not charges_overage:
        return None
    return default_nano if plan_cap_nano is None else plan_cap_nano


def next_try_at(limited_at: datetime, declines: int, retry_days: Sequence[int]) -> datetime | None:
    """When a card that was declined `declines` times is tried again: days after the first time. None: never."""
    return limited_at + timedelta(days=retry_days[declines - 1]) if declines <= len(retry_days) else None


def _due_from_nano(cap_nano: int, rules: Rules) -> int:
    """Long before the cap refuses the next call: calls reserve more than they cost."""
    return min(rules.threshold_nano, max(cap_nano // 2, 1)) if cap_nano else rules.threshold_nano


def _chargeable(bundle: Bundle) -> bool:
    return CARD_MINIMUM_CENTS <= cents_of(bundle.cost_nano) <= CARD_MAXIMUM_CENTS
