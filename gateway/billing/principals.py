"""Credentials looked up: the merchant, the customer, the meter, and who pays. Cached in process.

A change tells every worker over Redis within a second; a worker that does not hear the channel trusts its cache for
no longer than that. Loads that a change overtook are not kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import asyncpg
import msgspec

from gateway.billing.spend_keys import Rules, rules_of, spend_key_of
from gateway.core import meter as meters
from gateway.core.meter import Meter
from gateway.errors import ObolError, naming
from gateway.ledger.row import BillingMode
from gateway.ledger.spending import SpendKey
from gateway.ledger.wallets import WalletRef
from gateway.prices import PriceBook, merchants_book
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed, Unsealable
from gateway.store.secrets import digest
from gateway.wire import credential as credentials
from gateway.wire.credential import Credential

LOG = logging.getLogger("obol.principals")
SEALED_AS = "provider key"
"""The place of a merchant's key of a provider: this, merchant, provider (gateway/store/sealed.py)."""
UNHEARD_TTL_S = 1.0
REFUSAL_TTL_S = 1.0
LOAD_WAIT_S = 5.0
OLD_WAIT_S = 0.5
"""How long PostgreSQL is waited for where there is an old value to go on with."""
OLD_RETRY_S = 2.0
"""How long that is then used before PostgreSQL is asked again."""


class StoredKeys:
    """A merchant's own keys of providers, by the provider's name. Never shown."""

    def __init__(self, keys: dict[str, str | None]) -> None:
        self._keys = keys

    def __contains__(self, provider: str) -> bool:
        return provider in self._keys

    def of(self, provider: str) -> str:
        """Raise ObolError `upstream_key_missing` for one that this installation cannot open any more."""
        key = self._keys[provider]
        if key is None:
            why = f"the key stored for {provider} cannot be opened with this installation's master key: store it again"
            raise ObolError("upstream_key_missing", why)
        return key

    def __repr__(self) -> str:
        return f"StoredKeys({', '.join(self._keys)})"


class Merchant(msgspec.Struct, frozen=True):
    merchant_id: str
    mode: str
    name: str
    refuse_without_customer: bool
    self_connection_id: str | None
    self_meter_id: str | None
    prices: PriceBook | None = None
    """Its own prices of providers' models, which come before the installation's."""
    clock_offset_us: int = 0
    """How far a test merchant's clock is ahead (gateway/billing/clock.py)."""
    stored_keys: StoredKeys | None = None
    """Its own keys of providers, where it has some: used before the installation's."""


class Customer(msgspec.Struct, frozen=True):
    connection_id: str
    wallet: WalletRef
    is_self: bool
    status: str
    """"ok" or "disabled"."""


class Principal(msgspec.Struct, frozen=True):
    """Who a gateway call is for. `wallet` is held and settled; only `charged` calls take money from it."""

    merchant: Merchant
    mode: BillingMode
    wallet: WalletRef
    connection_id: str | None
    meter: Meter | None
    provider_key: str | None
    legacy: bool = False
    """The customer is named by a secret, as in the first eras."""
    spend: SpendKey | None = None
    rules: Rules | None = None
    """Of a call with a spend key, both: its limits, and what it may ask for."""

    @property
    def reserves(self) -> bool:
        """An amount is held for the call: the wallet's, or where that is not charged, its spend key's."""
        if self.mode == "customer":
            return True
        return self.spend is not None and self.spend.spend_limit is not None

    @property
    def charged(self) -> bool:
        """The customer pays for the call. All other modes are recorded at no charge: the merchant bears the cost."""
        return self.mode == "customer"


def unknown_customer(*, legacy: bool) -> ObolError:
    """What a token whose customer does not exist, or does no more, is told: by a secret 401, by an id 404."""
    if legacy:
        return ObolError("unauthorized", "this connection secret is not known", param="connection_secret")
    return ObolError("connection_not_found", "this connection is not known", param="connection_id")


def _unknown_spend_key() -> ObolError:
    return ObolError("unauthorized", "this spend key is not known", param="authorization")


class Cache:
    """Values by key, each belonging to one merchant, bounded in number and age. Concurrent loads of a key are one."""

    def __init__(self, *, entries_max: int, ttl_s: float) -> None:
        self._entries_max = entries_max
        self._ttl_s = ttl_s
        self._values: dict[str, tuple[float, str, Any]] = {}
        self._keys_of: dict[str, set[str]] = {}
        self._loading: dict[str, asyncio.Task[Any]] = {}
        self._changes = 0
        self.listening = False
        self.hits = 0
        self.misses = 0

    def get(self, key: str) -> Any:
        """The value, or None. A cached refusal is raised."""
        entry = self._values.get(key)
        if entry is None:
            return None
        age_s = time.monotonic() - entry[0]
        refusal = isinstance(entry[2], ObolError)
        if age_s > (REFUSAL_TTL_S if refusal else self._ttl_s if self.listening else UNHEARD_TTL_S):
            return None
        self.hits += 1
        if refusal:
            raise cast(ObolError, entry[2]).again()
        return entry[2]

    async def find(self, key: str, loader: Callable[[], Awaitable[tuple[str, Any]]]) -> Any:
        """The value, from here or loaded."""
        found = self.get(key)
        return await self.load(key, loader) if found is None else found

    async def load(self, key: str, loader: Callable[[], Awaitable[tuple[str, Any]]]) -> Any:
        """Load what `get` did not find. `loader` gives the merchant's id and the value.

        With PostgreSQL away a value that has only grown old is used on: nothing can be changed there meanwhile, and
        whatever was changed before has been heard. Otherwise raise ObolError `store_unavailable`.
        """
        self.misses += 1
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load(key, loader))
            self._loading[key] = task
            task.add_done_callback(partial(self._loaded, key))
        old = self._old(key)
        await asyncio.wait([task], timeout=LOAD_WAIT_S if old is None else OLD_WAIT_S)
        away = ObolError("store_unavailable", "the database is not reachable", retry_after_s=1)
        if task.done():
            try:
                return task.result()
            except ObolError as error:
                if error.code != "store_unavailable":
                    raise
                away = error
        if old is None or self._values.get(key) is not old:  # a change of it was heard while we waited
            raise away
        self._values[key] = (time.monotonic() - self._ttl_s + OLD_RETRY_S, old[1], old[2])
        return old[2]

    def _old(self, key: str) -> tuple[float, str, Any] | None:
        """A value that may be used although it is too old: no refusal, and every change is heard."""
        entry = self._values.get(key)
        return entry if entry is not None and self.listening and not isinstance(entry[2], ObolError) else None

    def _loaded(self, key: str, task: asyncio.Task[Any]) -> None:
        self._loading.pop(key, None)
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def _load(self, key: str, loader: Callable[[], Awaitable[tuple[str, Any]]]) -> Any:
        began, changes = time.monotonic(), self._changes
        try:
            merchant_id, value = await loader()
        except ObolError as refusal:
            if refusal.status in (401, 403, 404) and changes == self._changes:
                self._keep(key, began, "", refusal.again())
            raise
        if changes == self._changes:
            self._keep(key, began, merchant_id, value)
        return value

    def _keep(self, key: str, began: float, merchant_id: str, value: Any) -> None:
        while len(self._values) >= self._entries_max:
            self._drop(next(iter(self._values)))
        self._values[key] = (began, merchant_id, value)
        self._keys_of.setdefault(merchant_id, set()).add(key)

    def _drop(self, key: str) -> None:
        entry = self._values.pop(key, None)
        if entry is not None and (keys := self._keys_of.get(entry[1])) is not None:
            keys.discard(key)
            if not keys:
                del self._keys_of[entry[1]]

    def forget(self, merchant_id: str) -> None:
        """Something of this merchant changed. Refusals are forgotten too: what was missing may exist now."""
        self._changes += 1
        for owner in (merchant_id, ""):
            for key in list(self._keys_of.get(owner, ())):
                self._drop(key)

    def hearing(self, listening: bool) -> None:
        """The channel of changes was opened or lost. What was said in between is unknown, so nothing is kept."""
        self.listening = listening
        self._changes += 1
        self._values.clear()
        self._keys_of.clear()


class Principals:
    """Looks credentials up. `announce` publishes a merchant id to every worker (see ledger/changes.py)."""

    def __init__(
        self,
        store: Store,
        announce: Callable[[str], Awaitable[None]],
        *,
        entries_max: int = 100_000,
        ttl_s: float = 60,
        sealed: Sealed | None = None,
    ) -> None:
        """`sealed` opens the keys of providers that merchants have stored; without it there are none."""
        self._store = store
        self._announce = announce
        self._sealed = sealed
        self.cache = Cache(entries_max=entries_max, ttl_s=ttl_s)

    async def principal(self, text: str) -> Principal:
        """The principal of a gateway credential's text. Raise ObolError 400, 401, 403 or 404."""
        found = self.cache.get(text)  # not `find`: each call of the gateway passes here
        if found is None:
            found = await self.cache.load(text, lambda: self._load_principal(text))
        return cast(Principal, found)

    async def merchant(self, secret_key: str) -> Merchant:
        """The merchant of a secret key. Raise ObolError `unauthorized`."""
        key = f"merchant {secret_key}"
        return cast(Merchant, await self.cache.find(key, lambda: self._load_merchant(secret_key)))

    async def customer(self, merchant: Merchant, value: str) -> Customer:
        """A customer by connection id, connection secret or reference id. Raise `connection_not_found`."""
        key = f"customer {merchant.merchant_id} {value}"
        return cast(Customer, await self.cache.find(key, lambda: self._load_customer(merchant, value)))

    async def meter(self, merchant: Merchant, value: str) -> Meter:
        """A meter by id, slug or secret. Raise `meter_not_found`."""
        key = f"meter {merchant.merchant_id} {value}"
        return cast(Meter, await self.cache.find(key, lambda: self._load_meter(merchant, value)))

    async def changed(self, merchant_id: str) -> None:
        """Call after every committed change of a merchant's keys, meters, plans or connections."""
        self.cache.forget(merchant_id)
        await self._announce(merchant_id)

    async def _load_merchant(self, secret_key: str) -> tuple[str, Merchant]:
        row = await self._store.row("principals.merchant_by_key", digest(secret_key))
        if row is None:
            raise ObolError("unauthorized", "this secret key is not known", param="secret_key")
        return await self._made(row)

    async def merchant_by_id(self, merchant_id: str) -> Merchant:
        """A merchant whose id another credential names. Raise ObolError `unauthorized`."""
        key = f"merchant # {merchant_id}"
        return cast(Merchant, await self.cache.find(key, lambda: self._load_merchant_by_id(merchant_id)))

    async def _load_merchant_by_id(self, merchant_id: str) -> tuple[str, Merchant]:
        row = await self._store.row("principals.merchant_by_id", merchant_id)
        if row is None:
            raise ObolError("unauthorized", "this account is not known", param="authorization")
        return await self._made(row)

    async def _made(self, row: asyncpg.Record) -> tuple[str, Merchant]:
        values = dict(row)
        own = values.pop("prices")
        prices = await asyncio.to_thread(merchants_book, own) if own is not None else None
        merchant = Merchant(**values, prices=prices, stored_keys=await self._stored_keys(row["merchant_id"]))
        return merchant.merchant_id, merchant

    async def _stored_keys(self, merchant_id: str) -> StoredKeys | None:
        rows = await self._store.rows("keys.provider_sealed", merchant_id) if self._sealed is not None else []
        keys = {row["provider"]: self._opened(merchant_id, row["provider"], row["sealed"]) for row in rows}
        return StoredKeys(keys) if keys else None

    def _opened(self, merchant_id: str, provider: str, sealed: bytes) -> str | None:
        assert self._sealed is not None
        try:
            return self._sealed.open(sealed, SEALED_AS, merchant_id, provider)
        except Unsealable as error:
            fields = {"merchant_id": merchant_id, "provider": provider, "why": str(error)}
            LOG.error("a stored provider key cannot be opened", extra=fields)
            return None

    async def _load_customer(self, merchant: Merchant, value: str) -> tuple[str, Customer]:
        row = await self._store.row("principals.customer", merchant.merchant_id, value, digest(value))
        if row is None:
            raise ObolError("connection_not_found", "this connection is not known", param="connection_id")
        ref = WalletRef(row["wallet_id"], row["shard"], merchant.merchant_id)
        status = "disabled" if row["disabled"] else "ok"
        return merchant.merchant_id, Customer(row["connection_id"], ref, row["is_self"], status)

    async def _load_meter(self, merchant: Merchant, value: str) -> tuple[str, Meter]:
        row = await self._store.row("principals.meter", merchant.merchant_id, value, digest(value))
        if row is None:
            raise ObolError("meter_not_found", "this meter is not known", param="meter_slug")
        return merchant.merchant_id, meters.from_definition(row["meter_id"], row["version"], row["definition"])

    async def _load_principal(self, text: str) -> tuple[str, Principal]:
        credential = credentials.decode(text)
        if credential.kind == "spend_key":
            return await self._load_spend_key(credential.secret_key)
        merchant = await self.merchant(credential.secret_key)
        customer = await self._customer_of(credential, merchant)
        meter = await self._meter_of(credential, merchant)
        if customer is not None and not customer.is_self:
            await self._check_entitlement(customer, meter)
        payer = customer if credential.mode == "customer" and customer else await self._own(merchant)
        principal = Principal(
            merchant=merchant,
            mode=credential.mode,
            wallet=payer.wallet,
            connection_id=customer.connection_id if customer else None,
            meter=meter,
            provider_key=credential.provider_key,
            legacy=credential.legacy,
        )
        return merchant.merchant_id, principal

    async def _meter_of(self, credential: credentials.Credential, merchant: Merchant) -> Meter | None:
        if credential.meter is None:
            return None
        with naming(credential.meter.field):
            return await self.meter(merchant, credential.meter.value)

    async def _load_spend_key(self, text: str) -> tuple[str, Principal]:
        row = await self._store.row("keys.spend_by_hash", digest(text))
        if row is None:
            raise _unknown_spend_key()
        merchant = await self.merchant_by_id(row["merchant_id"])
        customer = await self._customer_with(merchant, row["connection_id"])
        meter = await self.meter(merchant, row["meter_id"]) if row["meter_id"] else None
        if not customer.is_self:
            await self._check_entitlement(customer, meter)
        own = customer.is_self
        principal = Principal(
            merchant=merchant,
            mode="merchant" if own else "customer",
            wallet=customer.wallet,
            connection_id=None if own else customer.connection_id,
            meter=meter,
            provider_key=None,
            spend=spend_key_of(row, by_cost=own, clock_offset_us=merchant.clock_offset_us),
            rules=rules_of(row),
        )
        return merchant.merchant_id, principal

    async def _customer_with(self, merchant: Merchant, connection_id: str) -> Customer:
        """The customer whose wallet a spend key is for: without it the key is none any more."""
        try:
            customer = await self.customer(merchant, connection_id)
        except ObolError as error:
            if error.code == "connection_not_found":
                raise _unknown_spend_key() from None
            raise
        if customer.status != "ok":
            raise ObolError("connection_disabled", "the customer of this spend key is disabled", param="authorization")
        return customer

    async def _customer_of(self, credential: Credential, merchant: Merchant) -> Customer | None:
        if credential.customer is None:
            if merchant.refuse_without_customer:
                raise ObolError("unauthorized", "this merchant takes calls for a customer only", param="connection_id")
            return None
        try:
            customer = await self.customer(merchant, credential.customer.value)
        except ObolError as error:
            if error.code == "connection_not_found":
                raise unknown_customer(legacy=credential.legacy) from None
            raise
        if customer.status != "ok":
            raise ObolError("connection_disabled", "this connection is disabled", param="connection_id")
        return customer

    async def _own(self, merchant: Merchant) -> Customer:
        """The merchant's own wallet, on the connection that was made with the merchant."""
        if merchant.self_connection_id is None:
            raise ObolError("connection_not_found", "this merchant has no connection of its own")
        return await self.customer(merchant, merchant.self_connection_id)

    async def _check_entitlement(self, customer: Customer, meter: Meter | None) -> None:
        """A plan with linked meters allows only those, unless it says otherwise; one without allows all."""
        if meter is None:
            return
        plan = await self._store.row("principals.plan_meters", customer.connection_id)
        if plan is None or plan["unlinked_meters"] == "allow":
            return
        if plan["linked"] and meter.meter_id not in plan["linked"]:
            raise ObolError("meter_not_on_plan", "this meter is not on the customer's plan", param="meter_slug")
