"""Spend keys on a real Valkey beside a model in Python, in any order: what is spent and held is what the calls did, and
never above the limit, also where the counters are lost and opened again from what was recorded by then."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Entry, Journal
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.ledger.spending import DAY_MS, SPANS, Cycle, Limit, SpendKey, Spent, cycles, first_days
from gateway.ledger.wallets import Price, WalletRef, Wallets, now_ms

REF = WalletRef("wal_1", 0, "mer_1")
START_MS = 20_500 * DAY_MS
AMOUNTS = st.integers(0, 8).map(lambda n: n * 500)
LATELY = st.integers(0, 3)
"""Which of the latest calls."""
LIMITS = st.none() | st.builds(Limit, st.sampled_from([3_000, 6_000]), st.sampled_from(list(SPANS)))


@dataclass
class ModelCall:
    key: SpendKey
    amount: int
    state: str = "open"
    progress: int = 0
    day: int = 0


@dataclass
class Model:
    """What a key's calls have spent, by day."""

    days: dict[int, list[int]] = field(default_factory=dict)

    def add(self, day: int, nano: int, requests: int) -> None:
        spent = self.days.setdefault(day, [0, 0])
        spent[0], spent[1] = spent[0] + nano, spent[1] + requests

    def spent(self, cycle: Cycle, today: int) -> Spent:
        firsts = dict(zip(SPANS, (*first_days(today), -1), strict=True))
        sums = [each for day, each in self.days.items() if day >= firsts[cycle]]
        return Spent(sum(each[0] for each in sums), sum(each[1] for each in sums))


class SpendMachine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = START_MS
        self.calls: dict[str, ModelCall] = {}

    def run(self, work):
        return self.runner.run(work)

    @initialize(limits=st.tuples(LIMITS, LIMITS), requests=LIMITS)
    def start(self, limits, requests):
        async def connect():
            self.connection = Connection(self.url, scripts.load())
            self.running = asyncio.ensure_future(self.connection.run())
            await self.connection.wait_ready(5)
            await self.connection.command("FLUSHALL")
            self.ledger = Wallets(self.connection, Keys(), record_ttl_s=600, report_ttl_s=600)
            await self.ledger.open(REF, status="ok", limit_nano=-1, create=True)

        self.run(connect())
        self.journal, self.recovery = Journal(self.connection, Keys()), Recovery(self.connection, Keys())
        requests = requests and Limit(requests.most // 1_000, requests.cycle)
        self.keys = [
            SpendKey(spend_key_id="by_cost", spend_limit=limits[0], request_limit=requests, by_cost=True),
            SpendKey(spend_key_id="by_debit", spend_limit=limits[1]),
        ]
        self.late = {key.spend_key_id: 0 for key in self.keys}
        """Settled once the hold had expired, and with it what it reserved: a settle never refuses."""
        self.models = {key.spend_key_id: Model() for key in self.keys}
        for key in self.keys:
            self.run(self.recovery.open_key(REF, key.spend_key_id, "0 0 0", [Spent()] * 4, number=0, used_ms=0))

    def teardown(self):
        if hasattr(self, "connection"):

            async def close():
                await self.connection.close()
                await self.running

            self.run(close())
        self.runner.close()

    @property
    def today(self) -> int:
        return self.now // DAY_MS

    def _open(self, key):
        return [each for each in self.calls.values() if each.key is key and each.state == "open"]

    def _left(self, key):
        if key.spend_limit is None:
            return None
        spent = self.models[key.spend_key_id].spent(key.spend_limit.cycle, self.today).nano
        return key.spend_limit.most - spent - sum(each.amount for each in self._open(key))

    def _lately(self, which):
        """One of the latest calls that has not ended for good; "" where there is none."""
        names = [name for name, each in self.calls.items() if each.state in ("open", "expired")]
        return names[-1 - which % len(names)] if names else ""

    @rule(hours=st.sampled_from([1, 13, 25, 24 * 8, 24 * 40]))
    def wait(self, hours):
        self.now += hours * 3_600_000

    @rule(which=st.integers(0, 1), amount=AMOUNTS)
    def hold(self, which, amount):
        key, request = self.keys[which], f"req:{len(self.calls)}"
        result = self.run(
            self.ledger.hold(
                REF, request, amount, expires_ms=self.now + DAY_MS, descriptor=b"{}", at_ms=self.now, spend=key
            )
        )
        left, requests = self._left(key), key.request_limit
        ended = requests and self.models[key.spend_key_id].spent(requests.cycle, self.today).requests
        if left is not None and amount > left:
            assert (result.kind, result.available_nano) == ("key_spent", left)
        elif requests is not None and ended + len(self._open(key)) >= requests.most:
            assert result.kind == "key_requests"
        else:
            assert result.kind == "held"
            self.calls[request] = ModelCall(key, amount, day=self.today)

    @rule(lately=LATELY, amount=AMOUNTS, progress=st.none() | AMOUNTS)
    def extend(self, lately, amount, progress):
        request = self._lately(lately)
        call = self.calls.get(request)
        if call is None or call.state != "open":
            return
        price = None if progress is None else (self._price(call, min(progress, call.amount)), b"{}")
        issued = self._extend_now(request, amount, price, call.key)
        left, more = self._left(call.key), amount - call.amount
        if price is not None:
            call.progress, call.day = min(progress, call.amount), self.today
        if left is not None and more > max(0, left):
            assert (issued.kind, issued.why, issued.available_nano) == ("refused", "key", left)
        else:
            assert issued.kind == "extended"
            call.amount = max(call.amount, amount)

    def _extend_now(self, request, amount, price, key):
        """`extend` takes the time itself: it is moved to the machine's."""
        shifted = SpendKey(
            spend_key_id=key.spend_key_id,
            spend_limit=key.spend_limit,
            by_cost=key.by_cost,
            clock_offset_us=(self.now - now_ms()) * 1_000,
        )
        return self.run(
            self.ledger.extend(
                REF, request, amount, expires_ms=self.now + DAY_MS, progress=price, spend=shifted
            )
        )  # fmt: skip

    @staticmethod
    def _price(call, nano):
        return Price(flat_nano=0 if call.key.by_cost else nano, cost_nano=nano if call.key.by_cost else 7)

    @rule(lately=LATELY, nano=AMOUNTS)
    def settle(self, lately, nano):
        request = self._lately(lately)
        if request:
            self._settle(request, nano)
            self._settle(request, nano)

    def _settle(self, request, nano):
        call = self.calls[request]
        nano = min(nano, call.amount)
        price = self._price(call, nano)
        result = self.run(self.ledger.settle(REF, request, price, at_ms=self.now, body=b"{}", spend=call.key))
        if call.state == "open":
            self.models[call.key.spend_key_id].add(self.today, nano, 1)
        elif call.state == "expired":
            late_nano = max(0, nano - call.progress)
            self.models[call.key.spend_key_id].add(self.today, late_nano, 0)
            self.late[call.key.spend_key_id] += late_nano
        else:
            assert result.kind == "duplicate"
            return
        assert result.kind == "settled"
        call.state = "settled"

    @rule(lately=LATELY)
    def release(self, lately):
        request = self._lately(lately)
        call = self.calls.get(request)
        if call is not None and call.state == "open":
            assert self.run(self.ledger.release(REF, request, call.key)) == "released"
            call.state = "released"

    @rule(lately=LATELY)
    def expire(self, lately):
        request = self._lately(lately)
        call = self.calls.get(request)
        if call is None or call.state != "open":
            return
        at_ms = self.now + 2 * DAY_MS
        assert self.run(self.ledger.expire(REF, request, at_ms, call.key.spend_key_id)) == "expired"
        self.models[call.key.spend_key_id].add(call.day, call.progress, 1)
        call.state = "expired"

    @rule(which=st.integers(0, 1), before=LATELY, behind=LATELY, nano=AMOUNTS)
    def lose_the_counters(self, which, before, behind, nano):
        """Nobody may begin anything until they are opened; what ends meanwhile is counted all the same."""
        key = self.keys[which]
        self._lose(key)
        refused = self.run(
            self.ledger.hold(REF, "req:none", 0, expires_ms=self.now, descriptor=b"{}", at_ms=self.now, spend=key)
        )
        assert refused.kind == "key_unopened"
        self.settle(before, nano)
        recorded = self.run(self.journal.last_number(0))  # what SpendCounters.open waits for
        self.settle(behind, nano)
        self._reopen(key, recorded, list(self.calls))

    @rule(which=st.integers(0, 1), lately=LATELY, renewed=st.booleans())
    def lose_a_hold_with_the_counters(self, which, lately, renewed):
        """It is made again too late to be found by who opens them."""
        key = self.keys[which]
        self.hold(which, 500)
        names = [name for name, each in self.calls.items() if each.key is key and each.state == "open"]
        if not names:
            return
        again = names.pop(-1 - lately % len(names))
        self._lose(key)
        self._hold_again(again)
        self._reopen(key, self.run(self.journal.last_number(0)), names)
        if renewed:
            assert self._extend_now(again, self.calls[again].amount, None, key).kind == "extended"
        else:
            self._settle(again, 500)

    def _lose(self, key):
        self.run(self.connection.command("DEL", Keys().spend(0, key.spend_key_id)))

    def _reopen(self, key, recorded, names):
        entries = [each for each in self.run(self.journal.read(0, 0, 10_000)) if each.number <= recorded]
        sums = _recorded([each for each in entries if each.spend_key_id == key.spend_key_id], self.today)
        holds = [Keys().hold(0, REF.merchant_id, name) for name in names]
        opened = self.recovery.open_key(
            REF, key.spend_key_id, cycles(self.today), sums, number=recorded, used_ms=0, holds=holds
        )
        assert self.run(opened) == "opened"

    def _hold_again(self, request):
        call = self.calls[request]
        self.run(self.connection.command("DEL", Keys().hold(0, REF.merchant_id, request)))
        again = self.ledger.hold(
            REF,
            request,
            call.amount,
            expires_ms=self.now + DAY_MS,
            descriptor=b"{}",
            at_ms=self.now,
            spend=call.key,
            again=True,
        )
        assert self.run(again).kind == "held"
        call.progress, call.day = 0, self.today

    @invariant()
    def counters_are_the_models(self):
        if not hasattr(self, "keys"):
            return
        for key in self.keys:
            live = self.run(self.recovery.spend_counters(0, key.spend_key_id, cycles(self.today)))
            assert live is not None
            model, open_calls = self.models[key.spend_key_id], self._open(key)
            assert live.spent == {cycle: model.spent(cycle, self.today) for cycle in SPANS}
            assert (live.held_nano, live.calls) == (sum(each.amount for each in open_calls), len(open_calls))
            if key.spend_limit is not None:
                assert live.spent[key.spend_limit.cycle].nano + live.held_nano <= (
                    key.spend_limit.most + self.late[key.spend_key_id]
                )


def _recorded(entries: list[Entry], today: int) -> list[Spent]:
    """What the flusher writes, and the statement keys.spend_sums reads."""
    model = Model()
    for entry in entries:
        model.add(entry.spent_day, entry.spent_nano, entry.spent_requests)
    return [model.spent(cycle, today) for cycle in SPANS]


@pytest.mark.timeout(280)
def test_spend_keys_behave_as_the_model(valkey):
    machine = type("Machine", (SpendMachine,), {"url": valkey})
    examples = settings.get_profile(settings._current_profile or "quick").max_examples
    run_state_machine_as_test(machine, settings=settings(max_examples=examples // 5, stateful_step_count=40))
