"""The real scripts on a real Valkey beside a model in Python, in any order: I1, I2, I3 and I8 after every step,
and the journal rebuilds every wallet."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.core.meter import Meter, Tier
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Journal
from gateway.ledger.keys import Keys
from gateway.ledger.turn import Turn
from gateway.ledger.wallets import HoldLimits, Price, WalletRef, Wallets

POTS = ("cycle", "bundle", "prepaid")
METERS = (
    Meter(meter_id="flat", version=1, rate_type="fixed", tier_type="tokens_1m", tiers=(Tier(0, 2_345_678_901),)),
    Meter(
        meter_id="graduated",
        version=1,
        rate_type="fixed",
        tier_type="minutes",
        tiers=(Tier(0, 7_777_777_777), Tier(60_000_000, 3_333_333_333), Tier(600_000_000, 1)),
    ),
    Meter(
        meter_id="percentage",
        version=1,
        rate_type="percentage",
        tier_type="requests",
        tiers=(Tier(0, 20_000_000), Tier(3, 12_345_678)),
        base_cost_payer="wallet",
    ),
)
# Multiples of 500 meet the edges (a hold of exactly what is available), the others the rest.
AMOUNTS = st.integers(0, 10).map(lambda n: n * 500) | st.integers(0, 5_000)
PROGRESS = st.tuples(st.sampled_from(METERS), st.integers(0, 10**9), AMOUNTS)
EXPIRY = 1_000_000
# A minute has a whole number of microseconds for each of these rates.
HOLD_LIMITS = st.builds(HoldLimits, st.sampled_from([0, 0, 2]), st.sampled_from([0, 60, 6_000]), st.integers(1, 3))


@dataclass
class ModelHold:
    wallet: int
    amount: int
    progress: tuple[Meter, int, int] | None = None
    expired_fee: int = 0
    expired_units: int = 0
    state: str = "open"  # open, settled, released, expired
    charged: int = 0


@dataclass
class ModelBucket:
    """The textbook's token bucket: it fills all the time, up to its size."""

    limits: HoldLimits
    tokens: Fraction = field(init=False)
    at_ms: int = 0

    def __post_init__(self) -> None:
        self.tokens = Fraction(self.limits.requests_burst)

    def wait_ms(self, now_ms: int) -> Fraction:
        """Fill it up to now; how long until there is a token."""
        a_ms = Fraction(self.limits.requests_per_minute, 60_000)
        self.tokens = min(Fraction(self.limits.requests_burst), self.tokens + (now_ms - self.at_ms) * a_ms)
        self.at_ms = now_ms
        return max(Fraction(0), (1 - self.tokens) / a_ms)


@dataclass
class ModelWallet:
    limit: int
    limits: HoldLimits
    bucket: ModelBucket
    pots: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*POTS, "overage"), 0))
    credits: int = 0
    debits: int = 0
    expired: int = 0
    seq: int = 0
    units: dict[str, int] = field(default_factory=dict)
    flat_units: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.pots[pot] for pot in POTS) - self.pots["overage"]

    def debit(self, amount: int) -> None:
        left = amount
        for pot in POTS:
            part = min(left, self.pots[pot])
            self.pots[pot] -= part
            left -= part
        self.pots["overage"] += left
        self.debits += amount
        self.seq += 1


class WalletMachine(RuleBasedStateMachine):
    url = ""
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 1
        self.holds: dict[str, ModelHold] = {}
        self.ended_without_hold: set[str] = set()
        self.grants: set[str] = set()
        self.reports: dict[str, tuple[int, int]] = {}

    def run(self, work):
        return self.runner.run(work)

    @initialize(limits=st.lists(st.tuples(st.sampled_from([0, 3_000, -1]), HOLD_LIMITS), min_size=2, max_size=3))
    def start(self, limits):
        async def connect():
            self.connection = Connection(self.url, scripts.load())
            self.running = asyncio.ensure_future(self.connection.run())
            await self.connection.wait_ready(5)
            await self.connection.command("FLUSHALL")

        self.run(connect())
        keys = Keys()
        self.ledger = Wallets(self.connection, keys, record_ttl_s=600, report_ttl_s=600)
        self.journal = Journal(self.connection, keys)
        self.wallets = [ModelWallet(limit, holds, ModelBucket(holds)) for limit, holds in limits]
        self.refs = [WalletRef(f"wal_{index}", index % 2, "mer_1") for index in range(len(limits))]
        for ref, wallet in zip(self.refs, self.wallets, strict=True):
            self.run(self.ledger.open(ref, status="ok", limit_nano=wallet.limit, create=True))

    def teardown(self):
        if hasattr(self, "connection"):

            async def close():
                await self.connection.close()
                await self.running

            self.run(close())
        self.runner.close()

    def _open(self, index: int) -> list[ModelHold]:
        return [hold for hold in self.holds.values() if hold.wallet == index and hold.state == "open"]

    def _held(self, index: int) -> int:
        return sum(hold.amount for hold in self._open(index))

    @rule(target=requests, name=st.integers(0, 12))
    def name(self, name):
        return f"req:{name}"

    @rule(ms=st.integers(1, 1_500))
    def wait(self, ms):
        self.now += ms

    @rule(request=requests, wallet=st.integers(0, 2), amount=AMOUNTS)
    def hold(self, request, wallet, amount):
        index = wallet % len(self.refs)
        model = self.wallets[index]
        known = self.holds.get(request)
        if known is not None and known.wallet != index:
            return  # a request id belongs to one wallet: the gateway makes it
        result = self.run(
            self.ledger.hold(
                self.refs[index],
                request,
                amount,
                expires_ms=self.now + EXPIRY,
                descriptor=b"{}",
                limits=model.limits,
                at_ms=self.now,
            )
        )
        available = model.total + model.limit - self._held(index)
        if request in self.ended_without_hold or (known and known.state != "open"):
            assert result.kind == "ended"
        elif known:
            assert result.kind == "held"
        elif model.limit >= 0 and amount > available:
            assert result.kind == ("insufficient" if amount > available + self._held(index) else "reserved")
            assert result.available_nano == available
        elif model.limits.calls and len(self._open(index)) >= model.limits.calls:
            assert (result.kind, result.calls) == ("busy", model.limits.calls)
        elif model.limits.requests_per_minute and (wait_ms := model.bucket.wait_ms(self.now)):
            assert (result.kind, result.retry_ms) == ("throttled", math.ceil(wait_ms))
        else:
            assert result.kind == "held"
            self.holds[request] = ModelHold(index, amount)
            model.bucket.tokens -= 1

    @rule(request=requests, amount=AMOUNTS, progress=st.none() | PROGRESS)
    def extend(self, request, amount, progress):
        hold = self.holds.get(request)
        index = hold.wallet if hold else 0
        result = self.run(
            self.ledger.extend(
                self.refs[index],
                request,
                amount,
                expires_ms=self.now + EXPIRY,
                progress=None if progress is None else (self._price(*progress)[0], b"{}"),
            )
        )
        if hold is None or hold.state != "open":
            assert result.kind == "gone"
            return
        if progress is not None:
            hold.progress = progress
        model, more = self.wallets[index], amount - hold.amount
        if more <= 0:
            assert result.kind == "extended"
        elif model.limit >= 0 and more > model.total + model.limit - self._held(index):
            insufficient = amount > model.total + model.limit
            assert (result.kind, result.why) == ("refused", "insufficient" if insufficient else "reserved")
            assert (result.amount_nano, result.available_nano) == (
                hold.amount, model.total + model.limit - self._held(index)
            )  # fmt: skip
        else:
            assert result.kind == "extended"
            hold.amount = amount

    @rule(request=requests, meter=st.sampled_from(METERS), units=st.integers(0, 10**9), cost=AMOUNTS)
    def settle(self, request, meter, units, cost):
        hold = self.holds.get(request)
        index = hold.wallet if hold else 0
        price, units = self._price(meter, units, cost)
        result = self.run(self.ledger.settle(self.refs[index], request, price, at_ms=self.now, body=b"{}"))
        if hold is None or hold.state == "released":
            assert result.kind == "gone"
        elif hold.state == "settled":
            assert (result.kind, result.amount_nano) == ("duplicate", hold.charged)
        else:
            amount = self._charge(index, meter, units, cost, result, hold)
            already = hold.charged if hold.state == "expired" else 0
            self.wallets[index].debit(max(0, amount - already))
            hold.state, hold.charged = "settled", amount

    @rule(
        name=st.integers(0, 8),
        wallet=st.integers(0, 2),
        meter=st.sampled_from(METERS),
        units=st.integers(0, 10**9),
        cost=AMOUNTS,
    )
    def report(self, name, wallet, meter, units, cost):
        index, request = wallet % len(self.refs), f"rep:{name}:{wallet % len(self.refs)}"
        price, units = self._price(meter, units, cost)
        result = self.run(self.ledger.report(self.refs[index], request, price, at_ms=self.now, body=b"{}"))
        if request in self.reports:
            assert (result.kind, result.amount_nano) == ("duplicate", self.reports[request][1])
        else:
            amount = self._charge(index, meter, units, cost, result)
            self.wallets[index].debit(amount)
            self.reports[request] = (index, amount)

    def _price(self, meter, units, cost):
        units = 1 if meter.tier_type == "requests" else units
        cost = cost if meter.rate_type == "percentage" else 0
        flat = cost * meter.tiers[0].rate // 10**8 if meter.rate_type == "percentage" else meter.ceiling(units, 0)
        return Price.of(meter, units, flat, cost), units

    def _charge(self, index, meter, units, cost, result, hold=None):
        """What the model says the real settle had to debit; checks it, advances the model's position."""
        wallet = self.wallets[index]
        assert result.kind == "settled"
        before, fee_before = (hold.expired_units, hold.expired_fee) if hold is not None else (0, 0)
        fresh = max(0, units - before)
        position = wallet.units.get(meter.meter_id, 0)
        wallet.units[meter.meter_id] = position + fresh
        assert result.position == max(0, position + fresh - units)
        if not meter.graduated:
            assert result.amount_nano == meter.ceiling(units, 0)
            return result.amount_nano
        if meter.rate_type == "percentage":
            fee = max(fee_before, meter._percentage(units, cost, max(0, position - before)))
        else:
            fee = fee_before + meter._running_total(position + fresh) - meter._running_total(position)
        expected = fee + (cost if meter.base_cost_payer == "wallet" else 0)
        assert result.amount_nano == expected
        return expected

    def _expired(self, index, hold):
        """What the progress costs where the counter stands; advances it."""
        if hold.progress is None:
            return 0
        meter, units, cost = hold.progress
        price, units = self._price(meter, units, cost)
        units_of = self.wallets[index].units
        position = units_of.get(meter.meter_id, 0)
        units_of[meter.meter_id] = position + units
        hold.expired_units = units
        if not meter.graduated:
            return price.flat_nano
        hold.expired_fee = meter.fee(units, cost, position)
        return price.flat_nano + hold.expired_fee

    @rule(request=requests)
    def release(self, request):
        hold = self.holds.get(request)
        index = hold.wallet if hold else 0
        result = self.run(self.ledger.release(self.refs[index], request))
        if hold is not None and hold.state == "open":
            assert result == "released"
            hold.state = "released"
        else:
            assert result == "gone"
            if hold is None:
                self.ended_without_hold.add(request)
                self.holds[request] = ModelHold(index, 0, state="released")

    @rule(request=requests, ahead=st.sampled_from([0, 2 * EXPIRY]))
    def expire(self, request, ahead):
        hold = self.holds.get(request)
        index = hold.wallet if hold else 0
        self.now += ahead
        result = self.run(self.ledger.expire(self.refs[index], request, self.now))
        if hold is None or hold.state != "open":
            assert result == "gone"
        elif result == "expired":
            amount = self._expired(index, hold)
            self.wallets[index].debit(amount)
            hold.state, hold.charged = "expired", amount
        else:
            assert result == "alive"
            assert not ahead

    @rule(
        grant=st.integers(0, 6),
        wallet=st.integers(0, 2),
        pot=st.sampled_from([*POTS, "overage"]),
        amount=st.integers(1, 10).map(lambda n: n * 500),
    )
    def credit(self, grant, wallet, pot, amount):
        index = wallet % len(self.refs)
        model, credit_id = self.wallets[index], f"grant:{grant}:{index}"
        result = self.run(self.ledger.credit(self.refs[index], credit_id, pot, amount, at_ms=self.now))
        if credit_id in self.grants:
            assert result == "duplicate"
            return
        assert result == "credited"
        self.grants.add(credit_id)
        if pot == "overage":
            paid = min(amount, model.pots["overage"])
            model.pots["overage"] -= paid
            model.pots["prepaid"] += amount - paid
        else:
            model.pots[pot] += amount
        model.credits += amount
        model.seq += 1

    @rule(
        number=st.integers(0, 6),
        wallet=st.integers(0, 2),
        turn=st.builds(Turn, st.booleans(), st.booleans(), st.integers(0, 5).map(lambda n: n * 500), st.booleans()),
        limit=st.sampled_from([0, 3_000, -1]),
    )
    def turn(self, number, wallet, turn, limit):
        """I9: a turn adds its credit and lets expire what is left, and neither touches what is held or owed."""
        index = wallet % len(self.refs)
        model, turn_id = self.wallets[index], f"turn:{number}:{index}"
        result = self.run(self.ledger.turn(self.refs[index], turn_id, turn, limit_nano=limit, at_ms=self.now))
        if turn_id in self.grants:
            assert result == "duplicate"
            return
        assert result == "turned"
        self.grants.add(turn_id)
        for pot, kept in (("cycle", turn.keep_cycle), ("bundle", turn.keep_bundle)):
            if not kept:
                model.expired += model.pots[pot]
                model.pots[pot] = 0
        model.pots["cycle"] += turn.credit_nano
        model.credits += turn.credit_nano
        model.limit = limit
        model.seq += 1
        if turn.reset_meters:
            model.units.clear()

    @invariant()
    def balances_are_the_models(self):
        """I1 and I2: credits - debits - expired = balance; held is the sum of the open holds, calls their number."""
        if not hasattr(self, "wallets"):
            return
        balances = self.run(self.ledger.balances(self.refs))
        for index, (model, real) in enumerate(zip(self.wallets, balances, strict=True)):
            assert model.credits - model.debits - model.expired == model.total == real.total_nano
            assert real.limit_nano == model.limit
            pots = (real.cycle_nano, real.bundle_nano, real.prepaid_nano, real.overage_nano)
            assert pots == tuple(model.pots[pot] for pot in (*POTS, "overage"))
            assert real.held_nano == self._held(index)
            assert real.calls == len(self._open(index))
            assert real.seq == model.seq
            assert min(pots) >= 0

    @invariant()
    def each_open_hold_is_open_in_redis(self):
        if not hasattr(self, "wallets"):
            return
        for shard in (0, 1):
            names = self.run(self.connection.command("ZRANGE", Keys().holds(shard), 0, -1))
            open_here = {
                Keys().hold(shard, "mer_1", request).encode()
                for request, hold in self.holds.items()
                if hold.state == "open" and self.refs[hold.wallet].shard == shard
            }
            assert set(names) == open_here

    @invariant()
    def the_journal_rebuilds_every_wallet(self):
        """I3 too: one debit for each request id, whatever was sent again."""
        if not hasattr(self, "wallets"):
            return
        totals = {ref.wallet_id: [0, 0, 0, 0, 0] for ref in self.refs}
        debits: dict[tuple[str, str], int] = {}
        for shard in (0, 1):
            for entry in self.run(self.journal.read(shard, 0, 100_000)):
                sums = totals[entry.wallet_id]
                deltas = (entry.cycle_delta, entry.bundle_delta, entry.prepaid_delta, entry.overage_delta)
                for place, delta in enumerate(deltas):
                    sums[place] += delta
                sums[4] += 1
                assert entry.seq == sums[4]
                if entry.kind in ("call", "report"):
                    key = (entry.wallet_id, entry.reference)
                    assert key not in debits, "a request was debited twice"
                    debits[key] = sum(deltas[3:]) - sum(deltas[:3])
        for ref, model in zip(self.refs, self.wallets, strict=True):
            assert totals[ref.wallet_id] == [*(model.pots[pot] for pot in (*POTS, "overage")), model.seq]


@pytest.mark.timeout(280)
def test_wallets_behave_as_the_model(valkey):
    machine = type("Machine", (WalletMachine,), {"url": valkey})
    examples = settings.get_profile(settings._current_profile or "quick").max_examples
    run_state_machine_as_test(machine, settings=settings(max_examples=examples // 2, stateful_step_count=30))
