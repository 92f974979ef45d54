"""Which events a worker may send now, and what became of them: the transactions on the outbox.

The unit of a claim is a lane, an endpoint and one customer: its first waiting event is sent, and nothing behind it
until that is delivered or dead. A claim lasts longer than an attempt; that of a worker that died comes back by itself,
and what a worker says about a claim that it has lost is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from gateway.billing import outbox
from gateway.store.postgres import Store
from gateway.wire import webhook_signature

ERROR_MAX_CHARACTERS = 500


class Endpoint(msgspec.Struct, frozen=True):
    """Where and how to send. `mode` is the merchant's, test or live."""

    webhook_id: str
    url: str
    signature_style: webhook_signature.Style
    event_style: outbox.Style
    secret_number: int
    secret_number_before: int | None
    """That signs, too, for a rotation is young."""
    mode: str


class Claim(msgspec.Struct, frozen=True):
    """One event to be sent to one endpoint. `attempts` counts this one; `body` is None at the first."""

    claim: UUID
    sequence: int
    event_id: str
    webhook_id: str
    merchant_id: str
    connection_id: str
    event: str
    data: dict[str, Any] | None
    created_at: datetime
    body: str | None
    attempts: int
    first_attempt_at: datetime
    attempted_at: datetime
    """When this attempt began."""

    @property
    def lane(self) -> tuple[str, str]:
        return self.webhook_id, self.connection_id


class Claims:
    """`lease_ms`: how long a claim lasts. `each_max`: claims of one endpoint at once, in this process."""

    def __init__(self, store: Store, *, lease_ms: int, each_max: int) -> None:
        self._store = store
        self._lease_ms = lease_ms
        self._each_max = each_max

    async def take(self, room: int, busy: Mapping[str, int]) -> list[Claim]:
        """At most `room` events that are due. `busy`: claims under way here, by endpoint."""
        async with self._store.transaction() as db:
            limits = (room, self._each_max, list(busy), list(busy.values()), self._lease_ms)
            lanes = await db.fetch(self._store.sql("webhooks.claim_lanes"), *limits)
            if not lanes:
                return []
            # A statement of its own: it sees what others committed before the lanes were locked.
            heads = await db.fetch(self._store.sql("webhooks.claim_heads"), *zip(*lanes, strict=True))
            taken = [Claim(*head) for head in heads]
            claimed = {claim.claim for claim in taken}
            empty = [lane for lane in lanes if lane["claim"] not in claimed]
            if empty:
                await db.execute(self._store.sql("webhooks.drop_claims"), *zip(*empty, strict=True))
        return taken

    async def endpoint(self, webhook_id: str) -> Endpoint:
        row = await self._store.row("webhooks.endpoint", webhook_id)
        assert row is not None, "endpoints are deleted by a mark only"
        return Endpoint(*row)

    async def keep_body(self, claim: Claim, body: str) -> str:
        """Return the body that is kept: that of whoever was first."""
        row = await self._store.row("webhooks.keep_body", claim.sequence, body)
        return body if row is None else str(row["body"])

    async def delivered(self, claim: Claim, status_code: int) -> None:
        await self._finish(claim, "delivered", status_code, None)

    async def failed(self, claim: Claim, status_code: int | None, error: str, retry_s: int) -> None:
        async with self._store.transaction() as db:
            if await self._lost(db, claim):
                return
            given = (retry_s, status_code, error[:ERROR_MAX_CHARACTERS])
            await db.execute(self._store.sql("webhooks.fail"), claim.sequence, *given)
            await self._free(db, claim)
            await db.execute(self._store.sql("webhooks.fails"), claim.webhook_id, claim.attempted_at)

    async def dead(self, claim: Claim, status_code: int | None, error: str) -> bool:
        """The next event of the lane may go. Return whether the endpoint is paused because nothing reaches it."""
        await self._finish(claim, "dead", status_code, error[:ERROR_MAX_CHARACTERS])
        return await self._pause(claim.webhook_id, "failing", claim.first_attempt_at)

    async def gone(self, claim: Claim) -> bool:
        """The endpoint said it is gone: it is paused, and what waits for it stays. Return whether that is news."""
        return await self._pause(claim.webhook_id, "gone", None)

    async def postponed(self, claim: Claim, why: str, retry_s: int) -> None:
        """Nothing was sent, for a reason on our side."""
        async with self._store.transaction() as db:
            if not await self._lost(db, claim):
                await db.execute(self._store.sql("webhooks.postpone"), claim.sequence, retry_s, why)
                await self._free(db, claim)

    async def _finish(self, claim: Claim, status: str, status_code: int | None, error: str | None) -> None:
        async with self._store.transaction() as db:
            if await self._lost(db, claim):
                return
            await db.execute(self._store.sql("webhooks.finish"), claim.sequence, status, status_code, error)
            await self._free(db, claim)
            if status == "delivered":
                await db.execute(self._store.sql("webhooks.works"), claim.webhook_id)

    async def _free(self, db: asyncpg.Connection, claim: Claim) -> None:
        """The lane is due when its first event is: no longer this one, if an earlier one is to be sent again."""
        due_at = await db.fetchval(self._store.sql("webhooks.next_due"), *claim.lane)
        if due_at is None:
            await db.execute(self._store.sql("webhooks.drop_lane"), *claim.lane)
        else:
            await db.execute(self._store.sql("webhooks.free_lane"), *claim.lane, due_at)

    async def _lost(self, db: asyncpg.Connection, claim: Claim) -> bool:
        return await db.fetchval(self._store.sql("webhooks.lock_lane"), *claim.lane, claim.claim) is None

    async def _pause(self, webhook_id: str, reason: str, since: datetime | None) -> bool:
        return await self._store.row("webhooks.give_up", webhook_id, reason, since) is not None
