"""After chaos Redis, the ledger and an independent count agree about every wallet (check 7)."""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat

from gateway import audit
from gateway.billing.accounts import NewConnection
from gateway.core.money import NANO
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN_NANO = 20_000
CONCURRENCY = 32
MESSAGES = "https://api.anthropic.com/v1/messages"
POTS = ("cycle", "bundle", "prepaid", "overage")


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


class Chaos:
    """Random things happen to random wallets. `spent` is what the wallets must have been charged, counted apart.

    Where the charge cannot be known beforehand (an answer cut short), the call carries the metadata `counted: no`.
    """

    def __init__(self, gateway: RunningGateway, customers: list[NewConnection], seed: int) -> None:
        self._gateway = gateway
        self._customers = customers
        self._chance = random.Random(seed)
        self._number = 0
        self.spent: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._kinds: tuple[tuple[Callable[[NewConnection], Awaitable[str]], int], ...] = (
            (self._call, 30),
            (self._leave, 12),
            (self._fail, 10),
            (self._cut, 10),
            (self._twice, 8),
            (self._report, 15),
            (self._report_twice, 8),
            (self._top_up, 4),
            (self._reconfigure, 3),
        )

    async def run(self, operations: int) -> None:
        slots = asyncio.Semaphore(CONCURRENCY)
        kinds, weights = zip(*self._kinds, strict=True)

        async def one() -> None:
            async with slots:
                happens = self._chance.choices(kinds, weights)[0]
                self.outcomes[await happens(self._chance.choice(self._customers))] += 1

        await asyncio.gather(*(one() for _ in range(operations)))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _tokens(self) -> tuple[int, int]:
        return self._chance.randrange(0, 900), self._chance.randrange(1, 60)

    def _ask(self, customer: NewConnection, steer: dict[str, Any], **headers: str) -> Any:
        """A call to one of two providers, streamed or not."""
        stream = self._chance.random() < 0.5
        body = chat(f"call {self._next()}", max_tokens=100, **({"stream": True} if stream else {}))
        url = CHAT
        if self._chance.random() < 0.3:
            url, body = MESSAGES, body | {"model": "claude-sonnet-4-5"}
        return self._gateway.forward(
            url, self._gateway.token_for(customer), json=body, headers=steering_header(**steer) | headers
        )

    async def _call(self, customer: NewConnection) -> str:
        prompt, output = self._tokens()
        async with self._ask(customer, {"prompt_tokens": prompt, "completion_tokens": output}) as answer:
            await answer.read()
        if answer.status == 200:
            self.spent[customer.connection_id] += prompt + output
        return f"call {answer.status}"

    async def _leave(self, customer: NewConnection) -> str:
        """The client hangs up at the first bytes: the provider's own usage is charged."""
        prompt, output = self._tokens()
        steer = {"prompt_tokens": prompt, "completion_tokens": output, "chunk_delay_ms": 1}
        async with self._ask(customer, steer) as answer:
            if answer.status == 200:
                self.spent[customer.connection_id] += prompt + output
            await answer.content.readany()
            answer.close()
        return f"left {answer.status}"

    async def _fail(self, customer: NewConnection) -> str:
        fault = self._chance.choice(("status:500", "status:429", "reset_before_first_byte"))
        async with self._ask(customer, {"fault": fault}) as answer:
            await answer.read()
        return f"{fault} {answer.status}"

    async def _cut(self, customer: NewConnection) -> str:
        fault = self._chance.choice(("reset_mid_stream", "truncated", "no_usage", "error_event"))
        try:
            async with self._ask(customer, {"fault": fault}, **{"x-lava-metadata": '{"counted":"no"}'}) as answer:
                await answer.read()
        except aiohttp.ClientError:
            return f"{fault} cut"
        return f"{fault} {answer.status}"

    async def _twice(self, customer: NewConnection) -> str:
        """One idempotency key, three times at once and once more: one charge at most."""
        prompt, output = self._tokens()
        body, key = chat(f"call {self._next()}", max_tokens=100), f"key-{self._next()}"
        headers = steering_header(prompt_tokens=prompt, completion_tokens=output) | {"Idempotency-Key": key}

        async def once() -> int:
            credential = self._gateway.token_for(customer)
            async with self._gateway.forward(CHAT, credential, json=body, headers=headers) as answer:
                await answer.read()
                return int(answer.status)

        statuses = [*await asyncio.gather(once(), once(), once()), await once()]
        self.spent[customer.connection_id] += (prompt + output) * statuses.count(200)
        assert statuses.count(200) <= 1
        return f"twice {sorted(set(statuses))}"

    async def _report(self, customer: NewConnection) -> str:
        prompt, output = self._tokens()
        return f"report {await self._send_report(customer, f'report-{self._next()}', prompt, output)}"

    async def _report_twice(self, customer: NewConnection) -> str:
        """The same id twice at once, then with another payload, which must change nothing."""
        prompt, output = self._tokens()
        name = f"report-{self._next()}"
        same = [self._send_report(customer, name, prompt, output, counted=counted) for counted in (True, False)]
        statuses = await asyncio.gather(*same)
        conflict = await self._send_report(customer, name, prompt + 1, output, counted=False)
        return f"report twice {sorted(set(statuses))}, then {conflict}"

    async def _send_report(
        self, customer: NewConnection, name: str, prompt: int, output: int, *, counted: bool = True
    ) -> int:
        payload = {
            "request_id": name,
            "connection_secret": customer.connection_secret,
            "product_secret": self._gateway.meter.meter_secret,
            "input_tokens": prompt,
            "output_tokens": output,
        }
        headers = {"Authorization": f"Bearer {self._gateway.merchant.secret_key}"}
        async with self._gateway.session.post(
            f"{self._gateway.url}/v1/requests", data=orjson.dumps(payload), headers=headers
        ) as answer:
            await answer.read()
        if counted:
            assert answer.status in (200, 201)
            self.spent[customer.connection_id] += prompt + output
        return int(answer.status)

    async def _top_up(self, customer: NewConnection) -> str:
        """The same credit twice: applied once."""
        name = f"top-up-{self._next()}"
        applied = [
            await self._gateway.context.wallets.credit(customer.wallet, name, pot, 700_000, at_ms=1)
            for pot in (["bundle", "bundle"] if self._chance.random() < 0.5 else ["prepaid", "prepaid"])
        ]
        assert applied == ["credited", "duplicate"]
        return "top-up"

    async def _reconfigure(self, customer: NewConnection) -> str:
        """A change that empties the caches of principals in the middle of calls."""
        await self._gateway.parts.principals.changed(customer.wallet.merchant_id)
        return "changed"


async def make_customers(gateway: RunningGateway, count: int) -> list[NewConnection]:
    """Rich ones, poor ones and some that may run up overage."""
    slots = asyncio.Semaphore(8)

    async def one(number: int) -> NewConnection:
        async with slots:
            credit_nano = (NANO, 30_000_000, 4_000_000)[number % 3]
            return await gateway.customer(credit_nano, limit_nano=(0, NANO)[number % 5 == 0])

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def come_to_rest(gateway: RunningGateway, customers: list[NewConnection]) -> None:
    """No hold is open, and everything is flushed."""
    refs = [customer.wallet for customer in customers]
    async with asyncio.timeout(60):
        while any(balance.held_nano for balance in await gateway.context.wallets.balances(refs)):
            await asyncio.sleep(0.05)
    while await gateway.flusher.flush_once():
        pass


async def keep_flushing(gateway: RunningGateway) -> None:
    while True:
        await gateway.flusher.flush_once()
        await asyncio.sleep(0.02)


async def sums_of_the_ledger(gateway: RunningGateway) -> dict[str, tuple[int, ...]]:
    """Entries, the last entry's number, and the sum of each pot, by wallet."""
    async with gateway.context.store.connection() as db:
        rows = await db.fetch(
            "SELECT wallet_id, count(*), max(seq), sum(cycle_delta), sum(bundle_delta), sum(prepaid_delta), "
            "sum(overage_delta) FROM ledger_entries GROUP BY wallet_id"
        )
    return {row[0]: tuple(map(int, tuple(row)[1:])) for row in rows}


async def check_wallets(gateway: RunningGateway, customers: list[NewConnection]) -> None:
    """Redis = ledger sum = wallet row, for every wallet and pot; entries without gaps."""
    ledger = await sums_of_the_ledger(gateway)
    live = await gateway.context.wallets.balances([customer.wallet for customer in customers])
    async with gateway.context.store.connection() as db:
        stored = {row["wallet_id"]: row for row in await db.fetch("SELECT * FROM wallets")}
    wrong = {}
    for customer, balance in zip(customers, live, strict=True):
        wallet_id = customer.wallet.wallet_id
        pots = tuple(getattr(balance, f"{pot}_nano") for pot in POTS)
        in_row = tuple(stored[wallet_id][f"{pot}_nano"] for pot in POTS)
        if not ledger[wallet_id] == (balance.seq, balance.seq, *pots) == (balance.seq, balance.seq, *in_row):
            wrong[wallet_id] = (ledger[wallet_id], balance, in_row)
    assert not wrong


async def check_charges(gateway: RunningGateway, chaos: Chaos) -> None:
    """The rows' charges are what was counted apart; no request id is charged twice."""
    async with gateway.context.store.connection() as db:
        rows = await db.fetch(
            "SELECT connection_id, sum(charge_nano) AS charge FROM requests "
            "WHERE metadata->>'counted' IS NULL GROUP BY connection_id"
        )
        twice = await db.fetchval(
            "SELECT count(*) FROM (SELECT FROM ledger_entries GROUP BY reference HAVING count(*) > 1) AS twice"
        )
    charged = {row["connection_id"]: int(row["charge"]) for row in rows if row["charge"]}
    expected = {name: tokens * TOKEN_NANO for name, tokens in chaos.spent.items() if tokens}
    assert charged == expected
    assert twice == 0


@pytest.mark.parametrize(
    ("wallets", "operations"),
    [(200, 700), pytest.param(10_000, 6_000, marks=[pytest.mark.slow, pytest.mark.timeout(1_200)])],
)
async def test_after_chaos_every_wallet_agrees(gateway: RunningGateway, wallets: int, operations: int) -> None:
    customers = await make_customers(gateway, wallets)
    chaos = Chaos(gateway, customers, seed=20261123)
    flushing = asyncio.create_task(keep_flushing(gateway))
    try:
        await chaos.run(operations)
    finally:
        flushing.cancel()
        await asyncio.wait([flushing])
    await come_to_rest(gateway, customers)
    print(f"\n{sum(chaos.outcomes.values())} operations on {wallets} wallets: {dict(sorted(chaos.outcomes.items()))}")
    assert len(chaos.outcomes) >= 20
    await check_wallets(gateway, customers)
    await check_charges(gateway, chaos)
    out = io.StringIO()
    assert await audit.audit(gateway.context.settings, out, recompute=True) == 0, out.getvalue()
