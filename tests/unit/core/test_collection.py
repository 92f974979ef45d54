"""What is charged to a card, and when it is looked at again: for every state of a wallet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.collection import (
    CARD_MINIMUM_CENTS,
    NANO_A_CENT,
    Bundle,
    Owing,
    Rules,
    cap_of,
    cents_of,
    debt,
    next_try_at,
    watch_nano,
)
from gateway.core.money import NANO

RULES = Rules(threshold_nano=5 * NANO, top_up_below_nano=NANO // 10)
BUNDLE = Bundle("bundle_1", 8 * NANO, 10 * NANO)
CHEAP = Bundle("bundle_2", NANO // 4, NANO)


def owing(**changes: Any) -> Owing:
    given: dict[str, Any] = {"pots_nano": 0, "overage_nano": 0, "cap_nano": 100 * NANO, "bundle": None}
    return Owing(**({"settling": False} | given | changes))


@pytest.mark.parametrize(
    ("state", "kind", "cents"),
    [
        (owing(overage_nano=5 * NANO - 1), None, 0),
        (owing(overage_nano=5 * NANO), "overage", 500),
        (owing(overage_nano=5 * NANO + 1), "overage", 501),
        (owing(overage_nano=9 * NANO, cap_nano=None), None, 0),
        (owing(overage_nano=2 * NANO, settling=True), "overage", 200),
        (owing(overage_nano=49 * NANO_A_CENT, settling=True), None, 0),
        (owing(overage_nano=49 * NANO_A_CENT + 1, settling=True), "overage", 50),
        (owing(overage_nano=NANO - 1, cap_nano=2 * NANO), None, 0),
        (owing(overage_nano=NANO, cap_nano=2 * NANO), "overage", 100),
        (owing(overage_nano=NANO // 5, cap_nano=NANO // 4), "overage", CARD_MINIMUM_CENTS),
        (owing(overage_nano=5 * NANO, cap_nano=0), "overage", 500),
        (owing(pots_nano=NANO // 10 + 1, bundle=BUNDLE), None, 0),
        (owing(pots_nano=NANO // 10, bundle=BUNDLE), "auto_top_up", 800),
        (owing(overage_nano=9 * NANO, bundle=BUNDLE), "auto_top_up", 800),
        (owing(pots_nano=NANO, overage_nano=9 * NANO, bundle=BUNDLE), "overage", 900),
        (owing(overage_nano=9 * NANO, bundle=CHEAP), "overage", 900),
        (owing(cap_nano=None, bundle=CHEAP), None, 0),
    ],
)
def test_what_is_due(state: Owing, kind: str | None, cents: int) -> None:
    due = debt(state, RULES)
    assert (due and due.kind, due.amount_cents if due else 0) == (kind, cents)


@given(st.integers(0, 10**15))
def test_cents_are_the_least_that_covers(nano: int) -> None:
    assert 0 <= cents_of(nano) * NANO_A_CENT - nano < NANO_A_CENT


STATES = st.builds(
    owing,
    pots_nano=st.integers(0, 30 * NANO),
    overage_nano=st.integers(0, 12 * NANO),
    cap_nano=st.none() | st.integers(0, 12 * NANO),
    bundle=st.sampled_from([None, BUNDLE, CHEAP]),
    settling=st.booleans(),
)


@given(STATES)
def test_what_is_charged_pays_for_the_overage_and_grants_at_least_that(state: Owing) -> None:
    due = debt(state, RULES)
    if due is not None:
        assert due.amount_cents >= CARD_MINIMUM_CENTS
        if due.kind == "overage":
            assert due.credit_nano == due.amount_cents * NANO_A_CENT >= state.overage_nano


@given(STATES, st.integers(0, 40 * NANO))
def test_nothing_becomes_due_by_usage_before_the_mark_is_reached(state: Owing, spent: int) -> None:
    """And at the mark a wallet that was not due is not below it already: the collector does not turn in circles."""
    if debt(state, RULES) is not None or state.settling:
        return
    level = watch_nano(state, RULES)
    assert level is None or level < state.pots_nano - state.overage_nano
    pots = max(0, state.pots_nano - spent)
    after = owing(
        pots_nano=pots,
        overage_nano=state.overage_nano + spent - (state.pots_nano - pots),
        cap_nano=state.cap_nano,
        bundle=state.bundle,
    )
    if debt(after, RULES) is not None:
        assert level is not None and after.pots_nano - after.overage_nano <= level


def test_a_declined_card_is_tried_again_days_after_the_first_time() -> None:
    first = datetime(2026, 3, 1, tzinfo=UTC)
    tries = [next_try_at(first, declines, (1, 3, 5, 7)) for declines in range(1, 6)]
    assert tries == [*(first + timedelta(days=days) for days in (1, 3, 5, 7)), None]


def test_the_cap_of_a_plan() -> None:
    assert [cap_of(True, None, 7), cap_of(True, 3, 7), cap_of(True, 0, 7), cap_of(False, 3, 7)] == [7, 3, 0, None]
