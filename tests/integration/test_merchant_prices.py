"""A merchant's own prices: its calls pay them at once, other merchants' do not, and every charge can be recomputed."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway

from gateway import audit, price_list
from gateway.billing.pricing import Pricing
from gateway.errors import ConfigurationError
from gateway.price_list import Wanted
from gateway.prices import BookContent, PriceBook
from gateway.settings import Settings
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "https://api.openai.com/v1/chat/completions"
MARKUP: dict[str, Any] = {"rate_type": "percentage", "tiers": [{"start": 0, "rate": "100"}]}
"""The cost of the call, and as much again."""
OWN = """
[[price]]
provider = "openai"
models = ["gpt-4.1", "in-house-*"]
rates = { input_mtok = "70", output_mtok = "90" }
"""
IMAGES = """
[[price]]
provider = "openai"
models = ["dall-e-3"]
rates = { images_kcount = "40" }
image_classes = [{ quality = "hd", rates = { images_kcount = "80" } }]
"""
CHEAPER = '[[price]]\nprovider = "openai"\nmodels = ["gpt-4.1"]\nrates = { input_mtok = "1", output_mtok = "1" }\n'
PUBLISHED = (2_000, 8_000)
"""Nano-dollars that gpt-4.1 costs a token, in and out."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


@pytest.fixture(scope="module")
def settings(engines: tuple[str, str]) -> Settings:
    return Settings(redis_url=engines[0], postgres_url=engines[1])


async def command(settings: Settings, **wanted: Any) -> str:
    """`obol prices` in a thread: it has an event loop of its own."""
    out = io.StringIO()
    assert await asyncio.to_thread(price_list.main, settings, Wanted(**wanted), out) == 0
    return out.getvalue()


async def replace(gateway: RunningGateway, settings: Settings, tmp_path: Path, text: str) -> str:
    """Set the merchant's prices; return their version, once the gateway has heard of them."""
    path = tmp_path / "prices.toml"
    path.write_text(text)
    told = await command(settings, merchant_id=gateway.merchant.merchant_id, replace=path)
    await asyncio.sleep(0.5)  # changes are read five times a second
    return re.search(r"version ([0-9a-f]{16})$", told.strip()).group(1)  # type: ignore[union-attr]


class Caller:
    """A customer under that meter."""

    def __init__(self, gateway: RunningGateway, credential: str, connection_id: str) -> None:
        self.gateway, self.credential, self.connection_id = gateway, credential, connection_id

    async def send(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """The row of a call that succeeds."""
        async with self.gateway.forward(url, self.credential, json=body) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        return (await self.gateway.rows("connection_id = $1", self.connection_id))[-1]

    async def call(self, model: str = "gpt-4.1") -> tuple[int, dict[str, Any]]:
        """The answer's status, and the row of the call."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}
        async with self.gateway.forward(CHAT, self.credential, json=body) as answer:
            answered = await answer.json()
        rows = await self.gateway.rows("connection_id = $1", self.connection_id)
        return answer.status, rows[-1] if answer.status == 200 else answered["error"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(gateway: RunningGateway) -> Caller:
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", "Markup", "markup", MARKUP)
    customer = await gateway.customer()
    return Caller(gateway, gateway.token_for(customer, meter), customer.connection_id)


def costs(row: dict[str, Any], in_nano: int, out_nano: int) -> bool:
    """Whether the row has this price a token, and its customer paid it."""
    usage = row["usage"]
    cost_nano = usage["input_tokens"] * in_nano + usage["output_tokens"] * out_nano
    return bool(row["cost_nano"] == cost_nano and row["charge_nano"] == 2 * cost_nano > 0)


async def test_images_are_charged_by_their_kind(
    gateway: RunningGateway, settings: Settings, caller: Caller, tmp_path: Path
) -> None:
    """Held for, charged and recorded by the quality that was asked for."""
    await replace(gateway, settings, tmp_path, IMAGES)
    for quality, each_nano in (("standard", 40_000_000), ("hd", 80_000_000)):
        body = {"model": "dall-e-3", "prompt": "a cat", "n": 2, "quality": quality, "size": "1024x1024"}
        row = await caller.send("https://api.openai.com/v1/images/generations", body)
        assert (row["cost_nano"], row["charge_nano"]) == (2 * each_nano, 4 * each_nano)
        assert row["usage"] == {
            "images": 2,
            "image_pixels": 2 * 1024 * 1024,
            "image_quality": quality,
            "image_size": "1024x1024",
        }
    out = io.StringIO()
    assert await audit.audit(settings, out, recompute=True) == 0, out.getvalue()


async def test_prices_of_a_merchant(
    gateway: RunningGateway, settings: Settings, caller: Caller, tmp_path: Path
) -> None:
    merchant_id, base = gateway.merchant.merchant_id, gateway.parts.pricing.book.version
    await command(settings, merchant_id=merchant_id, clear=True)
    await asyncio.sleep(0.5)
    status, row = await caller.call()
    assert (status, row["price_version"]) == (200, base) and costs(row, *PUBLISHED)
    status, error = await caller.call("in-house-7")
    assert (status, error["code"]) == (400, "forward_model_not_supported")

    version = await replace(gateway, settings, tmp_path, OWN)
    status, first = await caller.call()
    assert (status, first["price_version"]) == (200, f"{base}+{version}") and costs(first, 70_000, 90_000)
    status, in_house = await caller.call("in-house-7")
    assert status == 200 and costs(in_house, 70_000, 90_000)
    status, untouched = await caller.call("gpt-4.1-mini")
    assert status == 200 and costs(untouched, 400, 1_600)

    other = await gateway.accounts.create_merchant("other account", "test", "Other")
    meter = await gateway.accounts.create_meter(other.merchant_id, "test", "Markup", "markup", MARKUP)
    theirs = await gateway.parts.principals.merchant(other.secret_key)
    assert theirs.prices is None and meter.meter_id

    newer = await replace(gateway, settings, tmp_path, CHEAPER)
    status, second = await caller.call()
    assert second["price_version"] == f"{base}+{newer}" and costs(second, 1_000, 1_000)
    explained = await command(settings, provider="openai", model="gpt-4.1", version=first["price_version"])
    assert "the merchant's own prices" in explained and f"version      {base}+{version}" in explained
    assert "valid until" not in explained
    now = await command(settings, provider="openai", model="gpt-4.1", merchant_id=merchant_id, as_json=True)
    assert '"input_mtok": "1"' in now and '"source": "merchant"' in now
    for named in (caller.connection_id, gateway.meter.meter_id):
        assert await command(settings, provider="openai", model="gpt-4.1", merchant_id=named, as_json=True) == now

    await command(settings, merchant_id=merchant_id, clear=True)
    await asyncio.sleep(0.5)
    status, row = await caller.call()
    assert row["price_version"] == base and costs(row, *PUBLISHED)
    await recomputed(gateway, settings, first["price_version"])


async def recomputed(gateway: RunningGateway, settings: Settings, lost: str) -> None:
    """Every charge follows from what is stored, and what is missing or changed is told."""
    out = io.StringIO()
    assert await audit.audit(settings, out, recompute=True) == 0, out.getvalue()
    assert re.search(r"charges recomputed +8$", out.getvalue(), re.MULTILINE), out.getvalue()
    async with gateway.context.store.connection() as db:
        await db.execute("DELETE FROM price_books WHERE version = $1", lost.partition("+")[2])
    out = io.StringIO()
    assert await audit.audit(settings, out, recompute=True) == 1
    assert f"price book: expected {lost}, found nothing" in out.getvalue()


async def test_what_does_not_exist_is_told(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    for wanted, message in (
        ({"merchant_id": "mer_none"}, "there is no merchant, connection or meter with the id 'mer_none'"),
        (
            {"merchant_id": "mer_none", "replace": path},
            "there is no merchant, connection or meter with the id 'mer_none'",
        ),
        (
            {"merchant_id": "mer_none", "clear": True},
            "there is no merchant, connection or meter with the id 'mer_none'",
        ),
        ({"version": "0" * 16}, "there is no price book '0000000000000000'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            await command(settings, **wanted)


@pytest.mark.parametrize("stream", [False, True])
async def test_prices_that_change_during_a_call_are_not_its_own(
    gateway: RunningGateway, caller: Caller, *, stream: bool
) -> None:
    """Some change with the hour: what is dearer at the end would cost more than was held."""
    usual = gateway.parts.pricing
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    steering = steering_header(delay_ms=150)
    sending = asyncio.ensure_future(_status(gateway, caller, body, steering))
    try:
        while not gateway.parts.live:
            await asyncio.sleep(0.005)
        none_at_all = PriceBook(BookContent({}, {}, {}))
        gateway.parts.pricing = Pricing(none_at_all, refuse_unknown=False, default_max_output_tokens=1)
        assert await sending == 200
        row = (await gateway.rows("connection_id = $1", caller.connection_id))[-1]
    finally:
        gateway.parts.pricing = usual
    assert row["price_version"] == usual.book.version and costs(row, *PUBLISHED)


async def _status(gateway: RunningGateway, caller: Caller, body: dict[str, Any], headers: dict[str, str]) -> int:
    async with gateway.forward(CHAT, caller.credential, json=body, headers=headers) as answer:
        await answer.read()
        return answer.status
