"""The loops of webhooks: send what is due, and keep the log short."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from gateway.background import Background
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.wallets import Wallets
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.secrets import Derived
from gateway.webhooks import metrics
from gateway.webhooks.claims import Claim, Claims, Endpoint
from gateway.webhooks.message import Messages, with_secret
from gateway.webhooks.sender import Outcome, Sender, sending
from gateway.wire.webhook_signature import headers

_LOG = logging.getLogger("obol.webhooks")
GONE: Final = 410
LEASE_MARGIN_MS: Final = 10_000
"""By which a claim outlasts an attempt: what stands before it and behind it has a time limit of its own."""
POSTPONED_S: Final = 5
STOP_S: Final = 3.0
POSTGRES_POOL_MAX: Final = 4
FORGET_PAGE: Final = 5_000
COUNTED_MAX: Final = 1_000_000


class Deliverer:
    """Each `deliver_due` begins what may begin now; the attempts go on beside it, and look for more when they end."""

    def __init__(self, settings: Settings, store: Store, wallets: Wallets, sender: Sender) -> None:
        self._settings = settings
        self._store = store
        self._derived = Derived(settings.master_key)
        self._messages = Messages(store, wallets)
        self._sender = sender
        self._claims = Claims(
            store,
            lease_ms=settings.webhook_timeout_ms + LEASE_MARGIN_MS,
            each_max=settings.webhook_endpoint_calls_max,
        )
        self._attempts = Background()
        self._busy: Counter[str] = Counter()
        """Claims under way, by endpoint."""
        self._taking = asyncio.Lock()
        self._stopping = False

    @property
    def under_way(self) -> int:
        return len(self._attempts)

    async def deliver_due(self) -> bool:
        """Return whether there may be more that is due, and room for it."""
        async with self._taking:  # two at once would find the same room
            room = self._settings.webhook_calls_max - self._busy.total()
            if room <= 0 or self._stopping:
                return False
            taken = await self._claims.take(room, self._busy)
            for claim in taken:
                self._busy[claim.webhook_id] += 1
                self._attempts.start(self._attempt(claim), "webhook attempt")
        return bool(taken)

    async def tidy(self) -> bool:
        """Clear away a page of what is over, and measure what waits. Return whether more is to be cleared away."""
        page = (self._settings.webhook_log_days, FORGET_PAGE)
        cleared = (
            await self._store.execute("webhooks.expire", *page),
            await self._store.execute("webhooks.drop_lanes", FORGET_PAGE),
            await self._store.execute("webhooks.forget", *page),
        )
        if any(int(status.rpartition(" ")[2]) == FORGET_PAGE for status in cleared):
            return True
        row = await self._store.row("webhooks.waiting", COUNTED_MAX)
        assert row is not None
        metrics.WAITING.set(row["events"])
        metrics.OLDEST_S.set(row["oldest_s"])
        return False

    async def stop(self) -> None:
        """What is cut off is sent again when its claim has come back."""
        self._stopping = True
        await self._attempts.drain(STOP_S)

    async def _attempt(self, claim: Claim) -> None:
        try:
            await self._deliver(claim)
        except (ObolError, LedgerAway) as error:
            _LOG.warning("an event is taken up again when its claim has expired", extra=_place(claim, str(error)))
            return
        finally:
            self._busy[claim.webhook_id] -= 1
            if not self._busy[claim.webhook_id]:
                del self._busy[claim.webhook_id]
        with suppress(ObolError):  # the loop will tell
            await self.deliver_due()

    async def _deliver(self, claim: Claim) -> None:
        endpoint = await self._claims.endpoint(claim.webhook_id)
        try:
            body = claim.body or await self._written(claim, endpoint)
        except (ObolError, LedgerAway) as error:
            await self._conclude(claim, Outcome(None, str(error), ours=True))
            return
        except Exception as error:  # one event that cannot be told must not be in the way of the others for ever
            _LOG.exception("an event cannot be written", extra=_place(claim, type(error).__name__))
            await self._conclude(claim, Outcome(None, "the event could not be written"))
            return
        started_s = time.monotonic()
        outcome = await self._sent(claim, endpoint, body)
        metrics.ATTEMPT_S.observe(time.monotonic() - started_s)
        await self._conclude(claim, outcome)

    async def _written(self, claim: Claim, endpoint: Endpoint) -> str:
        return await self._claims.keep_body(claim, await self._messages.write(claim, endpoint))

    async def _sent(self, claim: Claim, endpoint: Endpoint, body: str) -> Outcome:
        content = with_secret(body, self._derived.connection_secret(endpoint.mode, claim.connection_id))
        secrets, now_s = self._secrets(endpoint), int(time.time())
        signed = headers(claim.event_id, content, secrets, timestamp_s=now_s, style=endpoint.signature_style)
        return await self._sender.post(endpoint.url, signed, content)

    def _secrets(self, endpoint: Endpoint) -> list[str]:
        """The endpoint's, newest first."""
        number, before = endpoint.secret_number, endpoint.secret_number_before
        numbers = (number,) if before is None else dict.fromkeys((number, number - 1, before))
        return [self._derived.webhook_secret(endpoint.webhook_id, each) for each in numbers]

    async def _conclude(self, claim: Claim, outcome: Outcome) -> None:
        """Faults of ours are no attempts, but not for ever: the customer's next events wait."""
        if outcome.ours and datetime.now(UTC) < claim.created_at + timedelta(
            seconds=sum(self._settings.webhook_retry_s)
        ):
            await self._claims.postponed(claim, outcome.error or "", POSTPONED_S)
        elif outcome.error is None:
            metrics.ATTEMPTS.labels("delivered").inc()
            await self._claims.delivered(claim, cast(int, outcome.status_code))
        else:
            await self._failed(claim, outcome, outcome.error)

    async def _failed(self, claim: Claim, outcome: Outcome, error: str) -> None:
        schedule, code = self._settings.webhook_retry_s, outcome.status_code
        if dead := claim.attempts > len(schedule):
            paused = await self._claims.dead(claim, code, error)
        else:
            await self._claims.failed(claim, code, error, schedule[claim.attempts - 1])
            paused = code == GONE and await self._claims.gone(claim)
        metrics.ATTEMPTS.labels("dead" if dead else "failed").inc()
        metrics.ENDPOINTS_PAUSED.inc(paused)
        fields = _place(claim, error) | {"attempt": claim.attempts, "dead": dead, "endpoint_paused": paused}
        _LOG.warning("an event was not delivered", extra=fields)


def _place(claim: Claim, reason: str) -> dict[str, object]:
    return {"webhook_id": claim.webhook_id, "event_id": claim.event_id, "reason": reason}


@asynccontextmanager
async def delivering(settings: Settings, wallets: Wallets) -> AsyncIterator[Deliverer]:
    """A deliverer with connections of its own, also to PostgreSQL: it takes none from whoever records charges.

    What is under way at the end is waited for a little.
    """
    store = await Store.connect(settings.postgres_url, pool_max=POSTGRES_POOL_MAX, by_index=True)
    try:
        async with sending(settings) as sender:
            deliverer = Deliverer(settings, store, wallets, sender)
            try:
                yield deliverer
            finally:
                await deliverer.stop()
    finally:
        await store.close()
