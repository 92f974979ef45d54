"""Live wallets: one typed method a script of `lua/`. Amounts are nano-dollars, times milliseconds since 1970."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from gateway.core.meter import MICRO_PERCENT, UNITS_PER_RATE_UNIT, Meter
from gateway.ledger import turn as turns
from gateway.ledger.answers import (
    BALANCE_FIELDS,
    HELD,
    UNLIMITED,
    Balance,
    Claim,
    Extension,
    HoldResult,
    Settled,
    text,
)
from gateway.ledger.connection import Argument, Connection, Issued, LedgerAway
from gateway.ledger.kept import Kept, Settle, Untold
from gateway.ledger.keys import Keys
from gateway.ledger.spending import SpendKey
from gateway.ledger.turn import Turn

__all__ = [
    "LOOK_AGAIN_MS",
    "UNBOUNDED",
    "UNLIMITED",
    "Balance",
    "Claim",
    "Extension",
    "HoldLimits",
    "HoldResult",
    "Price",
    "Settled",
    "WalletRef",
    "Wallets",
    "now_ms",
]

LOOK_AGAIN_MS = 10_000
"""When an expired hold whose wallet is being restored is looked at again."""


class WalletRef(msgspec.Struct, frozen=True):
    """Where a wallet lives."""

    wallet_id: str
    shard: int
    merchant_id: str


class HoldLimits(msgspec.Struct, frozen=True):
    """What a wallet's calls may be at most: open at once, begun in a minute and of these at once. 0: any number."""

    calls: int = 0
    requests_per_minute: int = 0
    requests_burst: int = 1


UNBOUNDED = HoldLimits()


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a settle debits: `flat_nano`, plus the graduated fee where the meter has tiers."""

    flat_nano: int
    meter: Meter | None = None
    units: int = 0
    cost_nano: int = 0

    @classmethod
    def of(cls, meter: Meter | None, units: int, flat_charge_nano: int, cost_nano: int) -> Price:
        """`flat_charge_nano` is the whole charge of a meter without graduated tiers (it is ignored with them)."""
        if meter is None or not meter.graduated:
            return cls(flat_nano=flat_charge_nano, meter=meter, units=units, cost_nano=cost_nano)
        return cls(flat_nano=meter.passed_on(cost_nano), meter=meter, units=units, cost_nano=cost_nano)

    def graduated_json(self) -> bytes:
        """The argument of lua/includes/tiers.lua, or nothing where one price fits all."""
        meter = self.meter
        if meter is None or not meter.graduated:
            return b""
        assert meter.rate_type == "fixed" or MICRO_PERCENT == 1_000_000
        return msgspec.json.encode(
            {
                "kind": meter.rate_type,
                "units": self.units,
                "per": UNITS_PER_RATE_UNIT[meter.tier_type],
                "cost": self.cost_nano,
                "starts": [tier.start for tier in meter.tiers],
                "rates": [tier.rate for tier in meter.tiers],
            }
        )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Wallets:
    """The scripts, typed. Every method may raise LedgerAway; all are safe to call again."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        record_ttl_s: int,
        report_ttl_s: int,
        kept: Kept | None = None,
        recorded: Callable[[Settle], Awaitable[bool]] | None = None,
    ) -> None:
        """`kept` sends settles again to a Redis that lost them. `recorded` tells, of a settle that Redis has had time
        to forget, whether the durable record has it; it raises LedgerAway while that cannot be told."""
        self._kept = kept
        self._recorded = recorded
        self._connection = connection
        self._keys = keys
        self._record_ttl_s = record_ttl_s
        self._report_ttl_s = report_ttl_s

    @property
    def credits_remembered_s(self) -> int:
        """For how long Redis knows the ids of credits and turns that it has applied."""
        return self._report_ttl_s

    async def open(self, ref: WalletRef, *, status: str, limit_nano: int, create: bool) -> str:
        """Return "opened", "configured" or "unknown" (lua/open.lua)."""
        reply = await self._connection.script(
            "open", [self._keys.wallet(ref.shard, ref.wallet_id)], [status, limit_nano, "1" if create else "0"]
        )
        return text(reply[0])

    async def hold(
        self,
        ref: WalletRef,
        request_id: str,
        amount_nano: int,
        *,
        expires_ms: int,
        descriptor: bytes,
        limits: HoldLimits = UNBOUNDED,
        at_ms: int | None = None,
        spend: SpendKey | None = None,
        again: bool = False,
    ) -> HoldResult:
        """Reserve `amount_nano` for a call that begins now, or at `at_ms`. `spend`: of the wallet and of its key.
        `again`: the call was held before, and Redis has lost it."""
        issued = self.issue_hold(
            ref,
            request_id,
            amount_nano,
            expires_ms=expires_ms,
            descriptor=descriptor,
            limits=limits,
            at_ms=at_ms,
            spend=spend,
            again=again,
        )
        return await self.held(issued)

    def issue_hold(
        self,
        ref: WalletRef,
        request_id: str,
        amount_nano: int,
        *,
        expires_ms: int,
        descriptor: bytes,
        limits: HoldLimits = UNBOUNDED,
        at_ms: int | None = None,
        spend: SpendKey | None = None,
        again: bool = False,
    ) -> Issued:
        """The same, on its way: the caller has something to do until it asks `held` for the answer."""
        keys, at_ms = self._call_keys(ref, request_id), now_ms() if at_ms is None else at_ms
        allowed = (limits.calls, limits.requests_per_minute, limits.requests_burst)
        arguments: Sequence[Argument] = (amount_nano, at_ms, expires_ms, descriptor, *allowed)
        if spend is not None:
            keys.append(self._keys.spend(ref.shard, spend.spend_key_id))
            arguments = (*arguments, *spend.hold_arguments(at_ms, again=again))
        return Issued("hold", keys, arguments, self._connection.issue("hold", keys, arguments))

    async def held(self, issued: Issued) -> HoldResult:
        reply = await self._connection.answer(issued)
        return HELD if reply[0] == b"held" else HoldResult.told(reply)

    async def extend(
        self,
        ref: WalletRef,
        request_id: str,
        amount_nano: int,
        *,
        expires_ms: int,
        progress: tuple[Price, bytes] | None = None,
        spend: SpendKey | None = None,
    ) -> Extension:
        """`progress`: what to debit if this gateway dies, and the request row so far."""
        issued = self.issue_extend(ref, request_id, amount_nano, expires_ms=expires_ms, progress=progress, spend=spend)
        return Extension.told(await self._connection.answer(issued))

    def issue_extend(
        self,
        ref: WalletRef,
        request_id: str,
        amount_nano: int,
        *,
        expires_ms: int,
        progress: tuple[Price, bytes] | None = None,
        spend: SpendKey | None = None,
    ) -> Issued:
        """The same, issued and not waited for: `extended` reads the future once it is done."""
        keys = self._call_keys(ref, request_id)[:3]
        arguments: Sequence[Argument] = (amount_nano, expires_ms, b"", 0, b"", b"", 0)
        if progress is not None:
            price, body = progress
            meter_id = price.meter.meter_id if price.meter is not None else b""
            arguments = (amount_nano, expires_ms, body, price.flat_nano, price.graduated_json(), meter_id, price.units)
        if spend is not None:
            keys.append(self._keys.spend(ref.shard, spend.spend_key_id))
            cost_nano = progress[0].cost_nano if progress is not None else 0
            arguments = (*arguments, *spend.extend_arguments(now_ms(), cost_nano))
        return Issued("extend", keys, arguments, self._connection.issue("extend", keys, arguments))

    @staticmethod
    def extended(issued: asyncio.Future[Any]) -> Extension | None:
        """What Redis answered; None where it did not, or with an error."""
        if issued.cancelled() or issued.exception() is not None or isinstance(issued.result(), Exception):
            return None
        return Extension.told(issued.result())

    async def settle(
        self, ref: WalletRef, request_id: str, price: Price, *, at_ms: int, body: bytes, spend: SpendKey | None = None
    ) -> Settled:
        """End the call that `hold` began."""
        settle = self._settle(ref, request_id, price, at_ms, body, self._record_ttl_s, "call", spend)
        return Settled.told(await self._connection.script("settle", settle.keys, settle.arguments))

    def issue_settle(
        self, ref: WalletRef, request_id: str, price: Price, *, at_ms: int, body: bytes, spend: SpendKey | None = None
    ) -> asyncio.Future[Any]:
        """The same, issued and not waited for: `acknowledged` reads the future once it is done."""
        settle = self._settle(ref, request_id, price, at_ms, body, self._record_ttl_s, "call", spend)
        reply = self._connection.issue("settle", settle.keys, settle.arguments)
        return reply if self._kept is None else self._kept.watch(settle, reply)

    @staticmethod
    def acknowledged(issued: asyncio.Future[Any]) -> Settled | None:
        """What Redis answered; None where it did not, or could not settle: then `settle_spent` is to be called."""
        if issued.cancelled() or issued.exception() is not None or isinstance(issued.result(), Exception):
            return None
        settled = Settled.told(issued.result())
        return None if settled.kind in ("unknown", "gone") else settled

    async def settle_spent(
        self, ref: WalletRef, request_id: str, price: Price, *, at_ms: int, body: bytes, spend: SpendKey | None = None
    ) -> Settled:
        """End a call that has spent: where Redis has lost its hold, the amount is debited all the same, once."""
        return await self._send(self._settle(ref, request_id, price, at_ms, body, self._record_ttl_s, "call", spend))

    async def report(self, ref: WalletRef, request_id: str, price: Price, *, at_ms: int, body: bytes) -> Settled:
        """Debit usage that happened elsewhere: there is no hold, and no refusal."""
        return await self._send(self._settle(ref, request_id, price, at_ms, body, self._report_ttl_s, "report"))

    async def resend(self, settle: Settle) -> str:
        """Send a settle that was acknowledged once more; return the first word of the answer."""
        return (await self._send(settle)).kind

    def queue_restore(self, shard: int, wallet_id: str) -> None:
        """A wallet was unknown that PostgreSQL knows: ask the worker to restore it before others."""
        with suppress(LedgerAway):
            asked = self._connection.call("SADD", self._keys.restoring(shard), wallet_id)
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _send(self, settle: Settle) -> Settled:
        settled = Settled.told(await self._connection.script("settle", settle.keys, settle.arguments))
        if settled.kind == "gone":
            settled = await self._settle_without_hold(settle)
        if settled.kind == "unknown":
            self.queue_restore(settle.shard, str(settle.arguments[0]))
        if self._kept is not None and settled.kind in ("settled", "duplicate"):
            await self._kept.acknowledged(settle)
        return settled

    async def _settle_without_hold(self, settle: Settle) -> Settled:
        """There is neither hold nor record: Redis has lost them, or has forgotten that it settled this long ago."""
        if settle.may_be_forgotten(now_ms()):
            if self._recorded is None:
                return Settled("gone")
            if not self._connection.connected:
                raise Untold("old settles are looked up once the connection is ready")
            if await self._recorded(settle):
                return Settled("duplicate")
        settled = Settled.told(await self._connection.script("settle", settle.keys, settle.without_hold().arguments))
        return msgspec.structs.replace(settled, hold_lost=settled.kind == "settled")

    def _settle(
        self,
        ref: WalletRef,
        request_id: str,
        price: Price,
        at_ms: int,
        body: bytes,
        ttl_s: int,
        how: str,
        spend: SpendKey | None = None,
    ) -> Settle:
        names = self._keys.of_wallet(ref.shard, ref.wallet_id, ref.merchant_id)
        meter = price.meter
        keys: Sequence[str] = (
            names.wallet,
            names.hold_prefix + request_id,
            names.holds,
            names.record_prefix + request_id,
            names.journal,
            names.journal_counter,
            names.tiers,
        )
        arguments: Sequence[Argument] = (
            ref.wallet_id,
            request_id,
            at_ms,
            price.flat_nano,
            price.graduated_json() if meter is not None and meter.graduated else b"",
            meter.meter_id if meter is not None else b"",
            price.units,
            body,
            ttl_s,
            how,
        )
        if spend is not None:
            keys = (*keys, self._keys.spend(ref.shard, spend.spend_key_id))
            arguments = (*arguments, *spend.settle_arguments(at_ms, price.cost_nano))
        return Settle(ref.shard, ref.merchant_id, keys, arguments)

    async def release(self, ref: WalletRef, request_id: str, spend: SpendKey | None = None) -> str:
        """Return "released" or "gone"."""
        keys = self._call_keys(ref, request_id)
        if spend is not None:
            keys.append(self._keys.spend(ref.shard, spend.spend_key_id))
        return text((await self._connection.script("release", keys, [self._record_ttl_s]))[0])

    async def expire(self, ref: WalletRef, request_id: str, at_ms: int, spend_key_id: str = "") -> str:
        """Return "expired", "alive", "unknown" or "gone". `spend_key_id`: as the hold names it."""
        reply = await self._connection.script(
            "expire",
            [
                *self._call_keys(ref, request_id),
                self._keys.journal(ref.shard),
                self._keys.journal_counter(ref.shard),
                self._keys.tiers(ref.shard, ref.wallet_id),
                *([self._keys.spend(ref.shard, spend_key_id)] if spend_key_id else ()),
            ],
            [ref.wallet_id, request_id, at_ms, self._report_ttl_s, at_ms + LOOK_AGAIN_MS],
        )
        return text(reply[0])

    async def credit(
        self, ref: WalletRef, credit_id: str, pot: str, amount_nano: int, *, at_ms: int, body: bytes = b"{}"
    ) -> str:
        """Return "credited", "duplicate" or "unknown"."""
        keys = self._keys
        reply = await self._connection.script(
            "credit",
            [
                keys.wallet(ref.shard, ref.wallet_id),
                keys.credit(ref.shard, credit_id),
                keys.journal(ref.shard),
                keys.journal_counter(ref.shard),
            ],
            [ref.wallet_id, credit_id, at_ms, pot, amount_nano, body, self._report_ttl_s],
        )
        if reply[0] == b"unknown":
            self.queue_restore(ref.shard, ref.wallet_id)
        return text(reply[0])

    async def turn(self, ref: WalletRef, turn_id: str, turn: Turn, *, limit_nano: int, at_ms: int) -> str:
        """Turn the cycle. Return "turned", "duplicate" or "unknown" (lua/turn.lua)."""
        names = self._keys.of_wallet(ref.shard, ref.wallet_id, ref.merchant_id)
        record = self._keys.credit(ref.shard, turn_id)
        reply = await self._connection.script(
            "turn",
            [names.wallet, record, names.journal, names.journal_counter, names.tiers],
            [ref.wallet_id, turn_id, at_ms, turns.encode(turn), limit_nano, self._report_ttl_s],
        )
        if reply[0] == b"unknown":
            self.queue_restore(ref.shard, ref.wallet_id)
        return text(reply[0])

    async def claim(
        self, shard: int, merchant_id: str, name: str, fingerprint: str, holder: str, *, ttl_s: int | None = None
    ) -> Claim:
        """Claim the caller's own id `name` for one payload (lua/claim.lua), for `ttl_s` unless it ends before."""
        reply = await self._connection.script(
            "claim", [self._keys.claim(shard, merchant_id, name)], [fingerprint, holder, ttl_s or self._report_ttl_s]
        )
        return Claim.told(reply, holder)

    async def unclaim(self, shard: int, merchant_id: str, name: str, holder: str, *, done: bool) -> None:
        state = "done" if done else "free"
        await self._connection.script(
            "unclaim", [self._keys.claim(shard, merchant_id, name)], [holder, state, self._report_ttl_s]
        )

    async def balances(self, refs: Sequence[WalletRef]) -> list[Balance | None]:
        """The wallets as they are now; None for one that Redis does not hold."""
        futures = [
            self._connection.call("HMGET", self._keys.wallet(ref.shard, ref.wallet_id), *BALANCE_FIELDS) for ref in refs
        ]
        return [Balance.told(await future) for future in futures]

    def _call_keys(self, ref: WalletRef, request_id: str) -> list[str]:
        names = self._keys.of_wallet(ref.shard, ref.wallet_id, ref.merchant_id)
        return [names.wallet, names.hold_prefix + request_id, names.holds, names.record_prefix + request_id]
