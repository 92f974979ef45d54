"""Beside the shipped providers: one that is added by a row, and any API that a price says something of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from tests_support import chat, events_of

from gateway import providers
from gateway.billing.pricing import Pricing
from gateway.prices import compile_book
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "https://search.example.com"
ROW = """
[[provider]]
name = "acme"
base = "https://api.acme.dev/openai/v1"
origins = ["https://api.acme.dev"]
inject_usage = true
"""
PRICES = """
[[price]]
provider = "search.example.com"
models = ["/v1/fi*"]
rates = { requests_kcount = "4", output_mbytes = "0.5", output_hours = "3.6" }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    shipped = Path(providers.__file__).parents[1] / "config" / "providers.toml"
    copied = tmp_path_factory.mktemp("config") / "providers.toml"
    copied.write_text(shipped.read_text(encoding="utf-8") + ROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "load", partial(providers.load, copied))
        async with (
            FakeProvider() as provider,
            running_gateway(*engines, provider, more_origins=[HOST], provider_keys={"acme": "sk-acme"}) as running,
        ):
            yield running


async def test_a_provider_is_added_by_a_row(gateway: RunningGateway) -> None:
    """Its key, its format, and the usage chunk that it must be asked for: all from the table."""
    customer, url = await gateway.customer(), "https://api.acme.dev/openai/v1/chat/completions"
    steer = steering_header(prompt_tokens=100, completion_tokens=20)
    gateway.provider.clear()
    async with gateway.forward(url, gateway.token_for(customer), json=chat(stream=True), headers=steer) as answer:
        events = events_of(await answer.read())
    assert events[-1] == "[DONE]" and all(event["choices"] for event in events[:-1])
    (sent,) = gateway.provider.requests
    assert sent.json["stream_options"] == {"include_usage": True}
    assert sent.header("authorization") == "Bearer sk-acme"
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (row["provider"], row["estimated"], row["charge_nano"]) == ("acme", False, 120 * 20_000)


async def call(
    gateway: RunningGateway, path: str, definition: dict[str, object]
) -> tuple[int, dict[str, object] | None]:
    """Make one call to the other host under a meter of its own: the status and the row."""
    customer = await gateway.customer()
    slug = f"meter-{customer.connection_id}"[:40].replace("_", "-")
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", "Calls", slug, definition)
    credential = gateway.token_for(customer, meter, provider_key="sk-own")
    async with gateway.forward(f"{HOST}{path}", credential, method="GET") as answer:
        await answer.read()
        status = answer.status
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    return status, rows[0] if rows else None


def fixed(kind: str, rate: str) -> dict[str, object]:
    return {"rate_type": "fixed", "tier_type": kind, "tiers": [{"start": 0, "rate": rate}]}


async def test_any_api_is_charged_by_the_request_and_by_the_minute(gateway: RunningGateway) -> None:
    status, row = await call(gateway, "/v1/files", fixed("requests", "0.01"))
    assert status == 200 and row is not None and row["charge_nano"] == 10_000_000
    usage = row["usage"]
    assert usage["input_bytes"] == 0 and usage["output_bytes"] > 10 and 0 < usage["output_us"] < 30_000_000
    status, row = await call(gateway, "/v1/files", fixed("minutes", "0.60"))
    assert status == 200 and row is not None and row["charge_nano"] == row["usage"]["output_us"] * 10


PERCENTAGE: dict[str, object] = {
    "rate_type": "percentage",
    "tier_type": "requests",
    "tiers": [{"start": 0, "rate": "10"}],
}


async def test_a_share_of_a_cost_that_nobody_knows_is_refused(gateway: RunningGateway) -> None:
    before = gateway.provider.request_count
    assert await call(gateway, "/v1/unpriced", PERCENTAGE) == (400, None)
    assert gateway.provider.request_count == before


async def test_an_api_is_priced_by_host_and_path(gateway: RunningGateway, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    gateway.parts.pricing = Pricing(
        compile_book(datetime.now(UTC), prices), refuse_unknown=False, default_max_output_tokens=4_096
    )
    status, row = await call(gateway, "/v1/files", PERCENTAGE)
    assert status == 200 and row is not None
    usage = row["usage"]
    picodollars = 4 * 10**9 + usage["output_bytes"] * 500_000 + usage["output_us"] * 1_000
    cost_nano = (picodollars + 500) // 1_000
    assert row["cost_nano"] == cost_nano
    assert row["charge_nano"] == cost_nano + (cost_nano + 5) // 10
