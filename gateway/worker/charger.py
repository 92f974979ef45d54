"""Sends open charges to the card processor, and asks it about those of which nothing is known.

Each is claimed for a while (`FOR UPDATE SKIP LOCKED`, a lease), so any number of workers may run. What was never sent
is sent. Of what was, the processor is asked; only where it knows of no such attempt, and a request of ours cannot be on
its way any more, it is sent again, under the same id. What an answer means, `billing/charges.py` decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import asyncpg

from gateway import failpoints
from gateway.background import Background
from gateway.billing.charges import Charges, order_of
from gateway.cards.contract import ChargeResult, Mode, OutcomeUnknown, Processor, ProcessorRefused
from gateway.errors import ObolError
from gateway.failpoints import FailPoints
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.worker import metrics

_LOG = logging.getLogger("obol.charges")
LEASE_MARGIN_MS: Final = 10_000
"""By which a claim outlasts a call: what is recorded behind it has time limits of its own."""
ASK_AGAIN_MAX_S: Final = 3_600
STOP_S: Final = 3.0
Processors = Callable[[Mode, str], Processor]
"""The processor of a mode and name (`Cards.named`). Raise ObolError where there is none."""


class Charger:
    """Each `charge_due` begins what may begin now; the calls go on beside it."""

    def __init__(
        self,
        store: Store,
        charges: Charges,
        processors: Processors,
        settings: Settings,
        fail: FailPoints | None = None,
    ) -> None:
        self._store = store
        self._charges = charges
        self._processors = processors
        self._settings = settings
        self._reached = failpoints.reaching(fail)
        self._calls = Background()
        self._stopping = False

    async def charge_due(self) -> bool:
        """Return whether there may be more that is due, and room for it."""
        room = self._settings.charge_calls_max - len(self._calls)
        if room <= 0 or self._stopping:
            return False
        lease_ms = self._settings.charge_timeout_ms + LEASE_MARGIN_MS
        rows = await self._store.rows("charges.claim", room, lease_ms)
        for row in rows:
            self._calls.start(self._attempt(row), "charge")
        return len(rows) == room

    async def measure(self) -> bool:
        """Set the gauges."""
        open_charges = await self._store.row("charges.unsettled")
        collections = await self._store.row("collections.limited")
        assert open_charges is not None and collections is not None
        metrics.CHARGES_OPEN.set(open_charges["charges"])
        metrics.CHARGES_OLDEST_S.set(open_charges["oldest_s"])
        metrics.CONNECTIONS_LIMITED.set(collections["limited"])
        return False

    async def stop(self) -> None:
        """What is cut off here is asked about when its claim has come back."""
        self._stopping = True
        await self._calls.drain(STOP_S)

    async def idle(self) -> None:
        """Wait for the calls that are under way."""
        while len(self._calls):
            await self._calls.drain(self._settings.charge_timeout_ms / 1000 + 1)

    async def _attempt(self, row: asyncpg.Record) -> None:
        try:
            result = await self._answer(row)
        except (OutcomeUnknown, TimeoutError) as error:
            await self._later(row, "unknown", str(error) or type(error).__name__)
        except (ProcessorRefused, ObolError) as error:
            await self._later(row, "refused", str(error))
        else:
            if result is None:
                await self._later(row, "unknown", "the processor knows of no such charge yet")
            else:
                await self._conclude(row, result)

    async def _answer(self, row: asyncpg.Record) -> ChargeResult | None:
        """What the processor says, or None: it knows nothing of the charge, and a request may still be on its way.
        Raise OutcomeUnknown, TimeoutError, ProcessorRefused; ObolError where there is no such processor."""
        processor = self._processors(row["mode"], row["processor"])
        order = order_of(row)
        async with asyncio.timeout(self._settings.charge_timeout_ms / 1000):
            if row["sent_at"] is not None:
                found = await processor.find(order, row["written_at_s"])
                if found is not None or row["sent_age_s"] < self._settings.charge_resend_after_s:
                    return found
                await self._store.execute("charges.sending_again", row["charge_id"], row["attempt"])
            self._reached("processor_called")
            result = await processor.charge(order)
        self._reached("processor_answered")
        return result

    async def _conclude(self, row: asyncpg.Record, result: ChargeResult) -> None:
        conclusion, before = await self._charges.recorded(row["charge_id"], result, attempt=row["attempt"])
        if conclusion == "processing":
            await self._later(row, "processing", "the processor has not decided yet", result.processor_ref)
            return
        self._reached("webhook_told")
        await self._charges.applied(conclusion, before)
        self._reached("credit_granted")
        metrics.CHARGES.labels(row["kind"], conclusion).inc()
        said = {"charge_id": row["charge_id"], "outcome": conclusion, "decline_code": result.decline_code}
        _LOG.info("a charge is concluded", extra=said)

    async def _later(self, row: asyncpg.Record, outcome: str, reason: str, processor_ref: str | None = None) -> None:
        """Still open: ask again, after a pause that doubles."""
        pause_s = min(self._settings.charge_ask_again_s * 2 ** min(row["asked"] - 1, 16), ASK_AGAIN_MAX_S)
        metrics.CHARGES.labels(row["kind"], outcome).inc()
        said = {"charge_id": row["charge_id"], "outcome": outcome, "reason": reason, "again_in_s": pause_s}
        _LOG.log(logging.ERROR if outcome == "refused" else logging.WARNING, "a charge stays open", extra=said)
        values = (row["charge_id"], row["attempt"], float(pause_s), processor_ref)
        await self._store.execute("charges.ask_again", *values)
