"""Spend keys: what calls made with one may ask for, and their counters in Redis, opened from the record.

Limits of spending and of requests are kept by the hold (lua/hold.lua), everything else is checked here beforehand.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from gateway.errors import ObolError
from gateway.ledger.journal import Journal
from gateway.ledger.recovery import Recovery
from gateway.ledger.spending import SPANS, Counters, Limit, SpendKey, Spent, first_days
from gateway.ledger.wallets import WalletRef, now_ms
from gateway.store.postgres import Store

OPEN_WAIT_S = 2.0
"""How long a call waits for the record to have what the journal held when it was made."""
OPEN_RETRY_S = 0.05
NOT_ALLOWED = "spend_key_not_allowed"
Holds = dict[str, list[str]]
"""Keys of open holds, by the id of their spend key."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What a spend key's calls may be. Every check raises ObolError of status 403."""

    status: str
    request_shape: str
    allowed_models: frozenset[str] | None
    """Names as a caller sends them: a model, or provider/model."""
    allowed_providers: frozenset[str] | None
    expires_us: int | None
    """In microseconds since 1970, of the merchant's time."""

    def check_usable(self, at_us: int) -> None:
        """`at_us`: the merchant's time."""
        if self.status != "active":
            raise ObolError("spend_key_inactive", f"this spend key is {self.status}", param="authorization")
        if self.expires_us is not None and at_us >= self.expires_us:
            raise ObolError("spend_key_inactive", "this spend key has expired", param="authorization")

    def check_shape(self, dialect: str) -> None:
        if dialect != self.request_shape:
            why = f"this spend key is for requests in the format of {self.request_shape}, not of {dialect}"
            raise ObolError(NOT_ALLOWED, why, param="request_shape")

    def check_model(self, provider: str, model: str | None) -> None:
        """`model`: as it is asked of the provider; None where the request names none."""
        if self.allowed_providers is not None and provider not in self.allowed_providers:
            raise ObolError(NOT_ALLOWED, f"this spend key may not use the provider {provider}", param="model")
        if self.allowed_models is None:
            return
        if model is None:
            raise ObolError(NOT_ALLOWED, "this spend key is for certain models; the request names none", param="model")
        if not self.allows(provider, model):
            raise ObolError(NOT_ALLOWED, f"this spend key may not use the model {model!r} of {provider}", param="model")

    def allows(self, provider: str, model: str) -> bool:
        if self.allowed_providers is not None and provider not in self.allowed_providers:
            return False
        models = self.allowed_models
        return models is None or model in models or f"{provider}/{model}" in models


def rules_of(row: Any) -> Rules:
    """Of a row of `spend_keys`."""
    return Rules(
        status=row["status"],
        request_shape=row["request_shape"],
        allowed_models=_set(row["allowed_models"]),
        allowed_providers=_set(row["allowed_providers"]),
        expires_us=None if row["expires_at"] is None else _microseconds(row["expires_at"]),
    )


def spend_key_of(row: Any, *, by_cost: bool, clock_offset_us: int) -> SpendKey:
    """Of a row of `spend_keys`. `by_cost`: its wallet is not charged."""
    return SpendKey(
        spend_key_id=row["spend_key_id"],
        spend_limit=_limit(row["spend_limit_nano"], row["spend_limit_cycle"]),
        request_limit=_limit(row["request_limit"], row["request_limit_cycle"]),
        requests_per_minute=row["requests_per_minute"] or 0,
        requests_burst=row["requests_burst"] or max(1, (row["requests_per_minute"] or 0)),
        by_cost=by_cost,
        clock_offset_us=clock_offset_us,
    )


def _set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _limit(most: int | None, cycle: Any) -> Limit | None:
    return None if most is None else Limit(most, cycle)


def _microseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000) * 1_000


class SpendCounters:
    """The counters of spend keys: read live, and opened where Redis does not have them."""

    def __init__(self, store: Store, journal: Journal, recovery: Recovery) -> None:
        self._store = store
        self._journal = journal
        self._recovery = recovery
        self._openings: dict[str, asyncio.Task[None]] = {}
        self._looks: dict[int, asyncio.Task[Holds]] = {}
        """By shard: the one under way."""
        self._next_looks: dict[int, asyncio.Task[Holds]] = {}

    async def begin(self, ref: WalletRef, spend_key_id: str) -> None:
        """Of a key that is new: nothing was spent with it. Raise LedgerAway."""
        await self._recovery.open_key(ref, spend_key_id, "0 0 0", [Spent()] * 4, number=0, used_ms=0)

    async def open(self, ref: WalletRef, key: SpendKey) -> None:
        """From the record, once that has whatever the journal holds: what ended later, the counters know themselves.

        Calls that wait for the same key wait for one opening. Raise ObolError `wallet_unavailable`,
        `store_unavailable`, or LedgerAway.
        """
        opening = self._openings.get(key.spend_key_id)
        if opening is None:
            opening = asyncio.create_task(self._open(ref, key), name="open spend key")
            self._openings[key.spend_key_id] = opening
            opening.add_done_callback(partial(self._opened, key.spend_key_id))
        try:
            async with asyncio.timeout(OPEN_WAIT_S):
                await asyncio.shield(opening)
        except TimeoutError:
            raise _unopened() from None

    def _opened(self, spend_key_id: str, opening: asyncio.Task[None]) -> None:
        del self._openings[spend_key_id]
        if not opening.cancelled():
            opening.exception()  # looked at, for where nobody waits any more

    async def _open(self, ref: WalletRef, key: SpendKey) -> None:
        holds = await self._look(ref.shard)
        at_ms = now_ms()
        sums = await self._sums(ref.shard, key, at_ms)
        opened = await self._recovery.open_key(
            ref,
            key.spend_key_id,
            key.cycles(at_ms),
            _spent(sums),
            number=sums["flushed_number"],
            used_ms=sums["used_ms"],
            holds=holds.get(key.spend_key_id, ()),
        )
        if opened == "unknown":
            await self._recovery.queue(ref.shard, [ref.wallet_id])
            raise _unopened()

    async def _look(self, shard: int) -> Holds:
        """The open holds of a shard, seen once the record has what the journal holds now. All keys that ask for it
        while one look is under way share the next: their number is no load on either engine."""
        look = self._next_looks.get(shard)
        if look is None:
            look = asyncio.create_task(self._look_behind(shard, self._looks.get(shard)), name="look at open holds")
            self._next_looks[shard] = look
        return await asyncio.shield(look)

    async def _look_behind(self, shard: int, before: asyncio.Task[Holds] | None) -> Holds:
        if before is not None:
            await asyncio.wait([before])
        self._looks[shard] = self._next_looks.pop(shard)
        try:
            await self._recorded(shard)
            return await self._recovery.open_holds(shard, by="k")
        finally:
            del self._looks[shard]

    async def _recorded(self, shard: int) -> None:
        """Until the record has what the journal holds now."""
        number, until_s = await self._journal.last_number(shard), time.monotonic() + OPEN_WAIT_S
        while (await self._store.rows("keys.flushed", shard))[0]["number"] < number:
            if time.monotonic() > until_s:
                raise _unopened()
            await asyncio.sleep(OPEN_RETRY_S)

    async def read(self, shard: int, key: SpendKey) -> Counters:
        """Live; as recorded where Redis does not have them. Raise ObolError `store_unavailable`, or LedgerAway."""
        at_ms = now_ms()
        live = await self._recovery.spend_counters(shard, key.spend_key_id, key.cycles(at_ms))
        if live is not None:
            return live
        sums = await self._sums(shard, key, at_ms)
        return Counters(dict(zip(SPANS, _spent(sums), strict=True)), used_ms=sums["used_ms"])

    async def _sums(self, shard: int, key: SpendKey, at_ms: int) -> Any:
        """In the cycles of `at_ms`, and ever."""
        row = await self._store.row("keys.spend_sums", key.spend_key_id, *first_days(key.day(at_ms)), shard)
        assert row is not None
        return row


def _spent(sums: Any) -> list[Spent]:
    return [Spent(sums[f"{span}_nano"], sums[f"{span}_requests"]) for span in ("day", "week", "month", "total")]


def _unopened() -> ObolError:
    return ObolError("wallet_unavailable", "the counters of this spend key are being restored", retry_after_s=1)
