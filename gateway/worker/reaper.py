"""Ends holds whose gateway is gone: past their expiry, the progress written on them is debited, the rest given back."""

from __future__ import annotations

import asyncio
import logging
import time

from hiredis import ReplyError

from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import WalletRef, Wallets, now_ms
from gateway.worker import metrics

_LOG = logging.getLogger("obol.reaper")
HOLDS_A_SHARD_MAX = 500
RETURN_GRACE_S = 5.0
"""While Redis was away no gateway could renew a hold or end it: so long they have to come back (3 s) and do so."""


class Reaper:
    """Looks through the open holds of every shard. Any number may run: the script ends a hold once."""

    def __init__(
        self, connection: Connection, keys: Keys, wallets: Wallets, *, shards: int, grace_s: float = RETURN_GRACE_S
    ) -> None:
        """`grace_s`: nothing is ended for so long after a connection to Redis was made."""
        self._connection = connection
        self._keys = keys
        self._wallets = wallets
        self._shards = shards
        self._grace_s = grace_s
        self._generation = 0
        self._since_s = time.monotonic()

    async def reap_once(self) -> int:
        """End at most HOLDS_A_SHARD_MAX expired holds of each shard; return how many. May raise LedgerAway."""
        if self._connection.generation != self._generation:
            self._generation, self._since_s = self._connection.generation, time.monotonic()
        if time.monotonic() - self._since_s < self._grace_s:
            return 0
        at_ms = now_ms()
        return sum([await self._reap_shard(shard, at_ms) for shard in range(self._shards)])

    async def _reap_shard(self, shard: int, at_ms: int) -> int:
        members = await self._connection.command(
            "ZRANGEBYSCORE", self._keys.holds(shard), "-inf", at_ms, "LIMIT", 0, HOLDS_A_SHARD_MAX
        )
        ended = await asyncio.gather(*(self._expire(shard, member, at_ms) for member in members))
        count = sum(ended)
        if count:
            metrics.HOLDS_EXPIRED.inc(count)
            _LOG.warning("expired holds were ended", extra={"shard": shard, "holds": count})
        return count

    async def _expire(self, shard: int, member: bytes, at_ms: int) -> bool:
        hold_key = member.decode("utf-8", "replace")
        try:
            merchant_id, request_id = self.owner_of(shard, hold_key)
        except ValueError as error:  # not ours: left there, enough of them would hide the holds behind them
            await self._connection.command("ZREM", self._keys.holds(shard), member)
            return self._failed(hold_key, error)
        try:
            wallet_key, spend_key_id = await self._connection.command("HMGET", hold_key, "w", "k")
            # A hold that ended in the meantime has no wallet any more; the script then only clears the index.
            ref = WalletRef(self._wallet_id(shard, wallet_key or b""), shard, merchant_id)
            return await self._wallets.expire(ref, request_id, at_ms, (spend_key_id or b"").decode()) == "expired"
        except (ValueError, ReplyError) as error:
            # One bad hold must not keep the others from being ended.
            return self._failed(hold_key, error)

    @staticmethod
    def _failed(hold_key: str, error: Exception) -> bool:
        metrics.TICK_ERRORS.labels("reaper").inc()
        _LOG.error("a hold cannot be ended", extra={"hold": hold_key, "reason": str(error)})
        return False

    def owner_of(self, shard: int, hold_key: str) -> tuple[str, str]:
        """Merchant and request id of a hold. Merchant ids hold no colon, request ids may. Raise ValueError."""
        prefix = self._keys.hold(shard, "", "").removesuffix(":")
        merchant_id, colon, request_id = hold_key.removeprefix(prefix).partition(":")
        if not hold_key.startswith(prefix) or not colon:
            raise ValueError(f"{hold_key!r} is no key of a hold")
        return merchant_id, request_id

    def _wallet_id(self, shard: int, wallet_key: bytes) -> str:
        return wallet_key.decode().removeprefix(self._keys.wallet(shard, ""))
