"""Prices: the scripts and core.meter agree to the nano-dollar; graduated tiers do not care about order (I8)."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.meter import RATE_MAX_PICO, UNITS_PER_RATE_UNIT, Meter, Tier, from_definition
from gateway.core.usage import Usage
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import Price, WalletRef, Wallets

SEED_TIERS = [{"start": 0, "rate": "5"}, {"start": 1_000_000, "rate": "3"}, {"start": 10_000_000, "rate": "1"}]
UNITS = st.integers(0, 10**10) | st.integers(0, 1_000)


@st.composite
def meters(draw, rate_type=None):
    kind = rate_type or draw(st.sampled_from(["fixed", "percentage"]))
    unit = draw(st.sampled_from(sorted(UNITS_PER_RATE_UNIT)))
    starts = sorted({0, *draw(st.lists(st.integers(1, 10**11), min_size=1, max_size=5))})
    top = 10**12 if kind == "fixed" else 2 * 10**8
    tiers = tuple(Tier(start, draw(st.integers(0, top))) for start in starts)
    return Meter(meter_id="m", version=1, rate_type=kind, tier_type=unit, tiers=tiers)


@given(st.lists(st.integers(1, 2_000_000), min_size=1, max_size=20), st.randoms())
def test_five_million_tokens_cost_seventeen_dollars_in_any_order_and_batching(cuts, random):
    meter = from_definition("m", 1, {"tiers": SEED_TIERS})
    parts, left = [], 5_000_000
    for cut in cuts:
        parts.append(min(cut, left))
        left -= parts[-1]
    parts.append(left)
    random.shuffle(parts)
    position = total = 0
    for part in parts:
        charge = meter.charge(Usage(input_tokens=part, output_tokens=0), 0, position)
        assert sum(line.fee_nano for line in charge.lines) == charge.fee_nano == charge.amount_nano
        total += charge.amount_nano
        position += part
    assert total == 17 * 10**9


@given(meters("fixed"), st.lists(UNITS, min_size=1, max_size=8), st.randoms())
def test_graduated_totals_do_not_depend_on_order_even_below_a_nano_dollar(meter, parts, random):
    def bill(order):
        position = total = 0
        for part in order:
            total += meter.fee(part, 0, position)
            position += part
        return total

    shuffled = list(parts)
    random.shuffle(shuffled)
    if meter.graduated:
        assert bill(parts) == bill(shuffled) == bill([sum(parts)])


@given(meters(), UNITS, st.integers(0, 10**10), st.integers(0, 10**11))
def test_a_charge_is_the_exact_price_rounded_once(meter, units, cost, position):
    charge = meter.charge(_usage(meter, units), cost, position)
    units = charge.units
    if meter.rate_type == "fixed":
        per = UNITS_PER_RATE_UNIT[meter.tier_type] * 1000
        exact = Fraction(sum(t.rate * p for t, p in meter._slices(position, units)), per)
        assert abs(charge.fee_nano - exact) <= (1 if meter.graduated else Fraction(1, 2))
    elif units:
        exact = Fraction(cost * sum(t.rate * p for t, p in meter._slices(position, units)), units * 10**8)
        assert abs(charge.fee_nano - exact) <= Fraction(1, 2)
    assert sum(line.fee_nano for line in charge.lines) == charge.fee_nano
    assert sum(line.units for line in charge.lines) == units
    assert charge.amount_nano <= meter.ceiling(units, cost) + 1


def _usage(meter: Meter, units: int) -> Usage:
    if meter.tier_type == "minutes":
        return Usage(output_us=units)
    if meter.tier_type == "characters_1m":
        return Usage(input_characters=units)
    return Usage(input_tokens=units, output_tokens=0)


@pytest.mark.timeout(200)
def test_the_scripts_price_as_the_model_does(valkey):
    runner = asyncio.Runner()

    async def connect():
        connection = Connection(valkey, scripts.load())
        task = asyncio.ensure_future(connection.run())
        await connection.wait_ready(5)
        await connection.command("FLUSHALL")
        return connection, task

    connection, task = runner.run(connect())
    wallets = Wallets(connection, Keys(), record_ttl_s=600, report_ttl_s=600)
    count = iter(range(10**9))

    @settings(max_examples=400, deadline=None)
    @given(meters(), st.lists(st.tuples(UNITS, st.integers(0, 10**10)), min_size=1, max_size=4))
    def agree(meter, requests):
        ref = WalletRef(f"wal_{next(count)}", 1, "mer_1")

        async def bill():
            await wallets.open(ref, status="ok", limit_nano=-1, create=True)
            position = 0
            for units, cost in requests:
                expected = meter.charge(_usage(meter, units), cost, position)
                price = Price.of(meter, expected.units, expected.amount_nano, cost)
                settled = await wallets.report(ref, f"r{next(count)}", price, at_ms=1, body=b"{}")
                assert settled.position == position
                assert settled.amount_nano == expected.amount_nano
                position += expected.units

        runner.run(bill())

    try:
        agree()
    finally:
        runner.run(connection.close())
        runner.run(_ended(task))
        runner.close()


async def _ended(task):
    await task


def test_the_largest_price_that_a_merchant_may_set_is_still_exact(valkey):
    """RATE_MAX_PICO a token for a large request stays below 2^53 nano-dollars, or is refused whole."""
    meter = Meter(meter_id="m", version=1, rate_type="fixed", tier_type="tokens_1m", tiers=(Tier(0, RATE_MAX_PICO),))
    assert meter.charge(Usage(input_tokens=9_000_000), 0).amount_nano == 9 * 1_000 * 10**9
