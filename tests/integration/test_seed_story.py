"""The seed story to the token, and how every charge is explained: its lines and its one rounding, without a float."""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway

import gateway as package
from gateway.billing.accounts import NewConnection, NewMeter
from gateway.core.money import NANO
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAN_NANO = 25 * NANO
PLAN_TOKENS = 1_250_000
MANY_NANO = 10**6 * NANO

OPENAI = "https://api.openai.com/v1"
PROMPT = [{"role": "user", "content": "hi"}]
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    (f"{OPENAI}/chat/completions", {"model": "gpt-4o-mini", "messages": PROMPT, "max_tokens": 300}),
    (f"{OPENAI}/chat/completions", {"model": "gpt-4o-mini", "messages": PROMPT, "max_tokens": 300, "stream": True}),
    (f"{OPENAI}/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "hi", "max_tokens": 300}),
    (f"{OPENAI}/responses", {"model": "gpt-4o-mini", "input": "hi", "max_output_tokens": 300}),
    (f"{OPENAI}/responses", {"model": "gpt-4o-mini", "input": "hi", "max_output_tokens": 300, "stream": True}),
    (
        "https://api.anthropic.com/v1/messages",
        {"model": "claude-sonnet-4-5", "messages": PROMPT, "max_tokens": 300, "stream": True},
    ),
    (
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 300}},
    ),
    (
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent%3Falt=sse",
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 300}},
    ),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


class Shop:
    """A customer of the gateway's merchant, and calls of the public API in the merchant's name."""

    def __init__(self, gateway: RunningGateway, customer: NewConnection, meter: NewMeter | None = None) -> None:
        self.gateway = gateway
        self.customer = customer
        self.meter = meter or gateway.meter
        self.sent = 0

    async def call(self, url: str, body: dict[str, Any], prompt_tokens: int, output_tokens: int, **more: Any) -> str:
        """A gateway call of so many tokens; its request id."""
        steer = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens} | more
        credential = self.gateway.token_for(self.customer, self.meter)
        url = url.replace("%3F", "?")
        async with self.gateway.forward(url, credential, json=body, headers=steering_header(**steer)) as answer:
            received = await answer.read()
            assert answer.status == 200, received
            return answer.headers["x-lava-request-id"]

    async def report(self, **usage: Any) -> dict[str, Any]:
        """POST /v1/requests; the request object."""
        self.sent += 1
        return await self._api(
            "POST",
            "/v1/requests",
            json={
                "request_id": f"{self.customer.connection_id}-{self.sent}",
                "connection_secret": self.customer.connection_secret,
                "product_secret": self.meter.meter_secret,
                **usage,
            },
        )

    async def explained(self, request_id: str) -> dict[str, Any]:
        """GET /v1/requests/{id}, once it is flushed."""
        await self.gateway.flusher.flush_once()
        return await self._api("GET", f"/v1/requests/{request_id}")

    async def _api(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.gateway.merchant.secret_key}"}
        async with self.gateway.session.request(
            method, f"{self.gateway.url}{path}", headers=headers, **arguments
        ) as answer:
            body = await answer.json()
            assert answer.status in (200, 201), body
            return dict(body)

    async def debit_nano(self, request_id: str) -> int:
        """What the ledger says that the wallet paid for a request."""
        await self.gateway.flusher.flush_once()
        async with self.gateway.context.store.connection() as db:
            paid = await db.fetchval(
                "SELECT sum(overage_delta - cycle_delta - bundle_delta - prepaid_delta) FROM ledger_entries "
                "WHERE wallet_id = $1 AND reference = $2",
                self.customer.wallet.wallet_id,
                request_id,
            )
        return int(paid)


async def shop_with(gateway: RunningGateway, **definition: Any) -> Shop:
    """A customer with more credit than any test spends, under a meter of the test's own."""
    name = f"meter-{len(json.dumps(definition))}-{id(definition)}"
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", name, name, definition)
    return Shop(gateway, await gateway.customer(MANY_NANO), meter)


async def test_twenty_five_dollars_are_exactly_a_million_and_a_quarter_tokens(gateway: RunningGateway) -> None:
    merchant_id = gateway.merchant.merchant_id
    plan = await gateway.accounts.create_plan(
        merchant_id, "Pro", PLAN_NANO, [gateway.meter.meter_id], overage="charge", cap_nano=NANO
    )
    customer = await gateway.accounts.create_customer(merchant_id, "test", limit_nano=NANO)
    await gateway.accounts.subscribe(customer, plan)
    shop, left = Shop(gateway, customer), PLAN_TOKENS
    for number in range(96):
        url, body = CALLS[number % len(CALLS)]
        prompt, output = 1_000 + 83 * number, 1 + 3 * number
        await shop.call(url, body, prompt, output)
        left -= prompt + output
        if number % 4 == 0:
            await shop.report(input_tokens=977 + number, output_tokens=11)
            left -= 988 + number
    assert 0 < left < PLAN_TOKENS
    await shop.report(input_tokens=left - 1)
    assert (await gateway.balance(customer)).cycle_nano == 20_000
    await shop.report(output_tokens=1)
    balance = await gateway.balance(customer)
    assert (balance.cycle_nano, balance.overage_nano, balance.held_nano) == (0, 0, 0)
    one_more = await shop.report(output_tokens=1)
    assert Decimal(one_more["charge"]["amount"]) == Decimal("0.00002")
    balance = await gateway.balance(customer)
    assert (balance.cycle_nano, balance.overage_nano) == (0, 20_000)
    await check_the_record(gateway, customer)


async def check_the_record(gateway: RunningGateway, customer: NewConnection) -> None:
    """PostgreSQL says the same: 96 + 24 + 3 charges over exactly one token more than the plan has."""
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    tokens = sum(row["usage"].get("input_tokens", 0) + row["usage"].get("output_tokens", 0) for row in rows)
    assert (len(rows), tokens) == (123, PLAN_TOKENS + 1)
    assert sum(row["charge_nano"] for row in rows) == PLAN_NANO + 20_000
    async with gateway.context.store.connection() as db:
        wallet = await db.fetchrow("SELECT * FROM wallets WHERE wallet_id = $1", customer.wallet.wallet_id)
    assert (wallet["cycle_nano"], wallet["overage_nano"]) == (0, 20_000)


async def check_lines(shop: Shop, request_id: str) -> dict[str, Any]:
    """Check 25: the lines add up to the fee, the fee and what is passed on to the charge, the charge is the debit."""
    shown = await shop.explained(request_id)
    fee, charge = Decimal(shown["fee"]["amount"]), Decimal(shown["charge"]["amount"])
    assert sum(Decimal(line["cost"]) for line in shown["fee"]["breakdown"]) == fee
    assert Decimal(shown["total_wallet_cost"]) == charge
    assert Decimal(shown["total_request_cost"]) == Decimal(shown["cost"]) + fee
    assert Decimal(shown["total_merchant_cost"]) == Decimal(shown["total_request_cost"]) - charge
    assert charge * NANO == await shop.debit_nano(request_id)
    return shown


async def test_the_lines_of_a_graduated_charge_add_up_over_the_tiers(gateway: RunningGateway) -> None:
    shop = await shop_with(
        gateway,
        tier_type="tokens_1m",
        tiers=[{"start": 0, "rate": "7.0000007"}, {"start": 1_000, "rate": "3.3"}, {"start": 2_500, "rate": "0.1"}],
    )
    total, used = Decimal(0), 0
    for prompt, output in ((700, 1), (299, 1), (333, 100), (2, 0), (2_000, 64), (5_000, 300)):
        url, body = CALLS[used % len(CALLS)]
        shown = await check_lines(shop, await shop.call(url, body, prompt, output))
        assert sum(line["tokens"] for line in shown["fee"]["breakdown"]) == prompt + output
        total, used = total + Decimal(shown["charge"]["amount"]), used + prompt + output
    shown = await check_lines(shop, (await shop.report(input_tokens=1))["request_id"])
    assert [line["tier"]["start"] for line in shown["fee"]["breakdown"]] == [2_500]
    used, total = used + 1, total + Decimal(shown["charge"]["amount"])
    exact = (1_000 * Decimal("7.0000007") + 1_500 * Decimal("3.3") + (used - 2_500) * Decimal("0.1")) / 1_000_000
    assert total == exact.quantize(Decimal("1e-9"), "ROUND_HALF_UP")


async def test_one_request_straddles_all_tiers(gateway: RunningGateway) -> None:
    shop = await shop_with(
        gateway, tiers=[{"start": 0, "rate": "1"}, {"start": 10, "rate": "0.0000007"}, {"start": 20, "rate": "1"}]
    )
    shown = await check_lines(shop, await shop.call(*CALLS[1], 25, 6))
    lines = shown["fee"]["breakdown"]
    assert [(line["tier"]["start"], line["tokens"]) for line in lines] == [(0, 10), (10, 10), (20, 11)]
    assert Decimal(shown["charge"]["amount"]) == Decimal("0.000021")


async def test_halves_of_a_nano_dollar_are_rounded_in_the_total_only(gateway: RunningGateway) -> None:
    """Half a nano-dollar, one and a half, and a half: each rounded alone they would be four."""
    shop = await shop_with(
        gateway,
        tiers=[{"start": 0, "rate": "0.0005"}, {"start": 1, "rate": "0.0015"}, {"start": 2, "rate": "0.0005"}],
    )
    shown = await check_lines(shop, await shop.call(*CALLS[3], 2, 1))
    assert [line["tokens"] for line in shown["fee"]["breakdown"]] == [1, 1, 1]
    assert Decimal(shown["charge"]["amount"]) == Decimal("0.000000003")


# The rate, and what 999,999 tokens cost: exact at twelve places, rounded once, half up, to nine.
ODD_RATES = {
    "0.0000007": "0.000000700",
    "0.000000001": "0.000000001",
    "0.0000000005": "0.000000000",
    "0.3333333333": "0.333333000",
    "19.99": "19.989980010",
}


@pytest.mark.parametrize("rate", ODD_RATES)
async def test_odd_rates_are_rounded_once(gateway: RunningGateway, rate: str) -> None:
    shop = await shop_with(gateway, tiers=[{"start": 0, "rate": rate}])
    shown = await check_lines(shop, await shop.call(*CALLS[0], 999_700, 299))
    assert Decimal(shown["charge"]["amount"]) == Decimal(ODD_RATES[rate])
    assert shown["fee"]["breakdown"][0]["tier"]["rate"] == rate


async def test_minutes_are_charged_to_the_microsecond(gateway: RunningGateway) -> None:
    shop = await shop_with(
        gateway, tier_type="minutes", tiers=[{"start": 0, "rate": "0.006"}, {"start": 2, "rate": "0.001"}]
    )
    first = await check_lines(shop, (await shop.report(input_seconds=90.5, output_seconds=0.25))["request_id"])
    assert Decimal(first["charge"]["amount"]) == Decimal("0.009075")
    second = await check_lines(shop, (await shop.report(input_seconds=45.000001))["request_id"])
    assert [line["seconds"] for line in second["fee"]["breakdown"]] == [29.25, 15.750001]
    assert Decimal(second["charge"]["amount"]) == Decimal("0.003187500")  # 0.0029250 + 0.0002625000167, rounded once


async def test_a_percentage_passes_the_cost_on_and_explains_both(gateway: RunningGateway) -> None:
    shop = await shop_with(gateway, rate_type="percentage", tiers=[{"start": 0, "rate": "12.5"}])
    shown = await check_lines(shop, await shop.call(*CALLS[0], 1_001, 299))
    cost = Decimal(shown["cost"])
    assert cost > 0 and Decimal(shown["charge"]["amount"]) == cost + Decimal(shown["fee"]["amount"])


# -- no float comes near an amount


MONEY_PACKAGES = ("core", "billing", "ledger", "proxy", "worker", "api", "store")
MONEY_NAMES = ("nano", "pico", "cents", "micro_percent")


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} | {
        inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)
    }


def _touches_money(node: ast.AST) -> bool:
    return any(part in name.lower() for name in _names(node) for part in MONEY_NAMES)


def _is_float(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, float)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return True
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float"


def _has_float(node: ast.AST) -> bool:
    return any(map(_is_float, ast.walk(node)))


def _mixes(node: ast.AST) -> bool:
    """An operation on an amount or a rate and a float, or one that makes a float of it."""
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return node.value is not None and _has_float(node.value) and any(map(_touches_money, targets))
    operates = isinstance(node, (ast.BinOp, ast.AugAssign, ast.Compare)) or _is_float(node)
    divides = isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div)
    return operates and (divides or _has_float(node)) and _touches_money(node)


def floats_near_money(source: str) -> set[int]:
    """Lines where a float, `float()` or `/` meets the name of an amount or a rate."""
    return {node.lineno for node in ast.walk(ast.parse(source)) if _mixes(node)}


async def test_no_float_touches_an_amount() -> None:
    root = Path(package.__file__).parent
    found = {}
    for path in sorted(path for name in MONEY_PACKAGES for path in (root / name).rglob("*.py")):
        if lines := floats_near_money(path.read_text(encoding="utf-8")):
            found[str(path.relative_to(root))] = lines
    assert not found
    for module in ("core/money.py", "core/meter.py", "core/price.py", "ledger/wallets.py"):
        tree = ast.parse((root / module).read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if _is_float(node)], module


FLOATS = (
    "fee_nano = cost_nano / 2",
    "fee_nano /= 2",
    "x = float(self.rate_pico)",
    "amount_nano *= 1.5",
    "return held_nano * 1e-9",
)


@pytest.mark.parametrize("line", FLOATS)
async def test_the_search_for_floats_finds_them(line: str) -> None:
    assert floats_near_money(f"def f():\n    {line}\n") == {2}
