"""The demo merchant of `obol up --demo`: made once, the same at every start."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec

from gateway.billing.accounts import Accounts, NewConnection
from gateway.core.money import NANO
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import Wallets
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.secrets import Derived, digest

ACCOUNT_ID = "demo"
MODE = "test"
METER = {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "20"}]}
"""$0.02 per 1K tokens."""
PLAN_NANO = 25 * NANO
PREPAID_PLAN_NANO = 1 * NANO
START_TIMEOUT_S = 30


async def seed(settings: Settings, data_dir: Path) -> dict[str, Any]:
    """Make the demo merchant, or find it as it was, and write `<data-dir>/demo.json` (0600). Return its content."""
    path = data_dir / "demo.json"
    store = await Store.connect(settings.postgres_url)
    try:
        known = _read(path)
        if known and await store.row("principals.merchant_by_key", digest(known["secret_key"])):
            found = known
        else:
            found = await _with_ledger(settings, store)
    finally:
        await store.close()
    found["openai_base_url"] = f"http://{settings.host}:{settings.port}/v1/forward?u=https://api.openai.com/v1"
    _write(path, found)
    return found


async def _with_ledger(settings: Settings, store: Store) -> dict[str, Any]:
    ledger = Connection(settings.redis_url, scripts.load(), timeout_ms=settings.redis_timeout_ms)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(ledger.run())
        try:
            await ledger.wait_ready(START_TIMEOUT_S)
            wallets = Wallets(
                ledger, Keys(), record_ttl_s=settings.settled_record_ttl_s, report_ttl_s=settings.report_record_ttl_s
            )
            accounts = Accounts(
                store,
                wallets,
                Derived(settings.master_key),
                shards=settings.ledger_shards,
                overage_cap_nano=settings.overage_cap_nano,
            )
            return await _make(accounts, store, settings.overage_cap_nano)
        finally:
            await ledger.close()
            running.cancel()


async def _make(accounts: Accounts, store: Store, cap_nano: int) -> dict[str, Any]:
    """demo.json lost but the merchant there: a second demo merchant is made beside it."""
    taken = await store.row("accounts.merchant_by_account", ACCOUNT_ID, MODE)
    account_id = ACCOUNT_ID if taken is None else f"{ACCOUNT_ID}-{os.urandom(4).hex()}"
    merchant = await accounts.create_merchant(account_id, MODE, "Demo merchant")
    of = merchant.merchant_id
    meter = await accounts.create_meter(of, MODE, "Demo: $0.02 per 1K tokens", "demo-tokens", METER)
    plan_id = await accounts.create_plan(
        of, "Demo plan", PLAN_NANO, [meter.meter_id], overage="charge", cap_nano=cap_nano
    )
    customer = await accounts.create_customer(
        of, MODE, limit_nano=cap_nano, reference_id="demo-customer", contact={"first_name": "Ada", "last_name": "Demo"}
    )
    await accounts.subscribe(customer, plan_id)
    small_id = await accounts.create_plan(
        of, "Demo prepaid plan", PREPAID_PLAN_NANO, [meter.meter_id], overage="block", cap_nano=0
    )
    prepaid = await accounts.create_customer(
        of, MODE, limit_nano=0, reference_id="demo-prepaid", contact={"first_name": "Blaise", "last_name": "Demo"}
    )
    await accounts.subscribe(prepaid, small_id)
    own = {"connection_secret": merchant.self_connection_secret, "product_secret": merchant.self_meter_secret}
    return {
        "secret_key": merchant.secret_key,
        "connection_id": customer.connection_id,
        "connection_secret": customer.connection_secret,
        "product_secret": meter.meter_secret,
        "meter_id": meter.meter_id,
        "meter_slug": meter.meter_slug,
        "subscription_config_id": plan_id,
        "forward_token": _token(merchant.secret_key, customer, meter.meter_secret),
        "prepaid_connection_id": prepaid.connection_id,
        "prepaid_connection_secret": prepaid.connection_secret,
        "prepaid_forward_token": _token(merchant.secret_key, prepaid, meter.meter_secret),
        "self_forward_token": _encode({"secret_key": merchant.secret_key, **own}),
    }


def _token(secret_key: str, customer: NewConnection, meter_secret: str) -> str:
    return _encode(
        {
            "secret_key": secret_key,
            "connection_secret": customer.connection_secret,
            "product_secret": meter_secret,
        }
    )


def _encode(fields: dict[str, str]) -> str:
    return b64encode(msgspec.json.encode(fields)).decode()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content), indent=2))
    partial.replace(path)
