"""Finds customers who owe, and writes what is to be charged to their cards. It calls no processor: `charger.py` does.

`collections` holds the wallets to be looked at: put there when a watched wallet has come down to its mark, when a cycle
has turned, when a charge has ended, when a card was added, and when a declined one is to be tried again. A look takes
the wallet as it is recorded, with nothing owed to it on its way, and either writes a charge or sets the mark anew. All
of a batch is one transaction on rows that nobody else has locked, so any number of collectors may run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg

from gateway import failpoints
from gateway.billing import charges
from gateway.billing.charges import LimitTurn, NewCharge
from gateway.billing.turns import Turns
from gateway.core.collection import Bundle, Debt, Owing, Rules, cap_of, debt, watch_nano
from gateway.errors import ObolError
from gateway.failpoints import FailPoints
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.secrets import new_id
from gateway.worker.charger import Processors

_LOG = logging.getLogger("obol.collector")
WALLETS_A_BATCH = 200
UNRECORDED_PAUSE: Final = timedelta(seconds=1)
"""Until a wallet is looked at again to which something is owed that is not recorded as applied yet."""
CHARGING_PAUSE: Final = timedelta(minutes=1)
"""The same, of one with an open charge."""
UNCHARGEABLE_PAUSE: Final = timedelta(hours=1)
"""The same, of one whose card's processor is not set up."""
_WORDS: Final = {"overage": "usage beyond the plan", "auto_top_up": "credit bundle"}


@dataclass(slots=True)
class Looks:
    """What a batch of looks comes to: of wallets, charges and connections, by their ids."""

    forget: list[str] = field(default_factory=list)
    leave: list[str] = field(default_factory=list)
    charged: list[str] = field(default_factory=list)
    postpone: list[tuple[str, datetime]] = field(default_factory=list)
    watch: list[tuple[str, int]] = field(default_factory=list)
    charge: list[NewCharge] = field(default_factory=list)
    retry: list[tuple[str, str, str]] = field(default_factory=list)
    cancel: list[str] = field(default_factory=list)
    allow: list[tuple[str, LimitTurn]] = field(default_factory=list)
    forbid: list[tuple[str, LimitTurn]] = field(default_factory=list)


class Collector:
    """Any number may run."""

    def __init__(
        self,
        store: Store,
        turns: Turns,
        processors: Processors,
        settings: Settings,
        fail: FailPoints | None = None,
    ) -> None:
        self._store = store
        self._turns = turns
        self._processors = processors
        self._cap_nano = settings.overage_cap_nano
        self._rules = Rules(settings.charge_threshold_nano, settings.auto_top_up_below_nano)
        self._reached = failpoints.reaching(fail)

    async def collect_once(self) -> bool:
        """Look at a batch that is due in real time, and one by clocks that are ahead. Return whether there may be more
        at once."""
        looked_at = [await self._round(name) for name in ("due", "due_by_clock")]
        return max(looked_at) == WALLETS_A_BATCH

    async def _round(self, name: str) -> int:
        async with self._store.transaction() as db:
            due = await db.fetch(self._store.sql(f"collections.{name}"), WALLETS_A_BATCH)
            if not due:
                return 0
            wallet_ids = [row["wallet_id"] for row in due]
            rows = await db.fetch(self._store.sql("collections.looked_at"), wallet_ids)
            looks = Looks()
            looks.forget += set(wallet_ids) - {row["wallet_id"] for row in rows}  # deleted customers
            for row in rows:
                self._look(row, looks)
            await self._write(db, looks)
        if looks.charge:
            self._reached("charge_written")
        if looks.allow or looks.forbid:
            await self._turns.apply_to(wallet_ids)
        return len(due)

    def _look(self, row: asyncpg.Record, looks: Looks) -> None:
        wallet_id = row["wallet_id"]
        if row["charging"]:  # the end of one of ours brings the wallet back sooner
            looks.postpone.append((wallet_id, row["merchant_now"] + CHARGING_PAUSE))
        elif row["unrecorded"]:
            looks.postpone.append((wallet_id, row["merchant_now"] + UNRECORDED_PAUSE))
        elif row["payer_id"] is None or row["plan_id"] is None:
            looks.forget.append(wallet_id)
        elif row["method_ref"] is None:
            looks.leave.append(wallet_id)  # a new card brings it back
            if row["can_charge"] and row["subscribed"]:
                looks.forbid.append((row["connection_id"], _turn(row)))
        elif not self._chargeable(row):
            looks.postpone.append((wallet_id, row["merchant_now"] + UNCHARGEABLE_PAUSE))
        elif row["declined_id"] is not None and self._still_owed(row):
            looks.retry.append((row["declined_id"], row["customer_ref"], row["method_ref"]))
            (looks.charged if row["declined_kind"] == "overage" else looks.leave).append(wallet_id)
        else:
            self._decide(row, looks)

    def _chargeable(self, row: asyncpg.Record) -> bool:
        """Whether the card's processor is set up. Where it is not, its owner keeps what the plan allows."""
        try:
            self._processors(row["mode"], row["processor"])
        except ObolError as error:
            _LOG.warning("a card cannot be charged", extra={"wallet_id": row["wallet_id"], "reason": error.message})
            return False
        return True

    def _decide(self, row: asyncpg.Record, looks: Looks) -> None:
        if row["declined_id"] is not None:
            looks.cancel.append(row["declined_id"])
        owing = self._owing(row)
        due = debt(owing, self._rules)
        if due is not None:
            looks.charge.append(_charge(row, due))
            (looks.charged if due.kind == "overage" else looks.leave).append(row["wallet_id"])
            return
        if row["subscribed"]:
            if not row["can_charge"]:
                looks.allow.append((row["connection_id"], _turn(row)))
            level_nano = watch_nano(owing, self._rules)
            if level_nano is not None:
                looks.watch.append((row["wallet_id"], level_nano))
        looks.forget.append(row["wallet_id"])

    def _owing(self, row: asyncpg.Record) -> Owing:
        bundle = None
        if row["credit_bundle_id"] is not None:
            bundle = Bundle(row["credit_bundle_id"], row["cost_nano"], row["credit_nano"])
        return Owing(
            pots_nano=row["pots_nano"],
            overage_nano=row["overage_nano"],
            cap_nano=cap_of(row["charges_overage"], row["overage_cap_nano"], self._cap_nano),
            bundle=bundle,
            settling=row["cycle_ended"] or row["limited_at"] is not None,
        )

    def _still_owed(self, row: asyncpg.Record) -> bool:
        """Whether what was declined is wanted as it was; else it is called off, and what is owed now decided anew."""
        if row["declined_processor"] != row["processor"]:
            return False
        if row["declined_kind"] == "overage":
            return bool(row["overage_nano"] >= row["declined_nano"])
        wanted = debt(self._owing(row), self._rules)
        return wanted is not None and wanted.credit_bundle_id == row["declined_bundle_id"]

    async def _write(self, db: asyncpg.Connection, looks: Looks) -> None:
        store = self._store
        if looks.cancel:
            await db.execute(store.sql("charges.cancel"), looks.cancel)
        await charges.insert(db, store, looks.charge)
        await db.executemany(store.sql("charges.retry"), looks.retry)
        for connection_id, turn in looks.allow:
            await charges.allow_overage(db, store, connection_id, self._cap_nano, turn)
        for connection_id, turn in looks.forbid:
            await charges.forbid_overage(db, store, connection_id, turn)
        await db.executemany(store.sql("collections.postpone"), looks.postpone)
        for name, wallet_ids in (("leave", looks.leave), ("charged", looks.charged), ("forget", looks.forget)):
            if wallet_ids:
                await db.execute(store.sql(f"collections.{name}"), wallet_ids)
        # Behind the rest: a wallet that has come down to its mark meanwhile is put into `collections` again.
        if looks.watch:
            await db.execute(store.sql("collections.watch"), *_columns(looks.watch))


def _charge(row: asyncpg.Record, due: Debt) -> NewCharge:
    return NewCharge(
        charge_id=new_id("chg_"),
        merchant_id=row["merchant_id"],
        connection_id=row["connection_id"],
        wallet_id=row["wallet_id"],
        kind=due.kind,
        amount_cents=due.amount_cents,
        owed_nano=due.owed_nano,
        pot=due.pot,
        credit_nano=due.credit_nano,
        credit_bundle_id=due.credit_bundle_id,
        plan_id=row["plan_id"],
        description=f"{row['merchant']}: {_WORDS[due.kind]}",
        mode=row["mode"],
        processor=row["processor"],
        customer_ref=row["customer_ref"],
        method_ref=row["method_ref"],
    )


def _turn(row: asyncpg.Record) -> LimitTurn:
    return LimitTurn(new_id("limit_"), row["merchant_now"])


def _columns(rows: Sequence[tuple[str, int]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
