"""`obol audit`: compares the live wallets with the durable record, and stored charges with what they should be.

Checks I1 (ledger = wallet row = Redis, held = open holds, entries without gaps), I6 (Redis = PostgreSQL, tier counters
and overage limits too), I7 (a charge follows from stored usage, price version and meter version), I9 (the turn of a
cycle adds its credit and lets expire what was left, once; none is missing, and none is owed for long) and I10 (what
cards were charged was credited, once). It may run beside traffic: Redis is read first, with each wallet's sequence
number, and compared with the ledger up to that number once it has been flushed.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

import asyncpg
import msgspec

from gateway.api.versions import MeterVersions
from gateway.core.meter import Meter
from gateway.core.usage import ZERO, Usage
from gateway.errors import ObolError
from gateway.ledger import scripts
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import Balance, WalletRef, Wallets
from gateway.prices import JOINT, Book, MerchantBook, PriceBook
from gateway.proxy.call import BILLED
from gateway.settings import Settings
from gateway.store.postgres import Store

WALLETS_A_PAGE = 500
CHARGES_BY_DEFAULT = 10_000
CHARGES_A_BATCH = 1_000
HOLDS_A_PAGE = 1_000
FLUSH_WAIT_S = 10.0
TURN_OWED_S = 3_600
"""Turns are applied in seconds once Redis and the worker are there."""
HELD_ATTEMPTS = 5
PRICE_BOOKS_KEPT_MAX = 32
_ENGINE_WAIT_S = 5.0
_PAUSE_S = 0.1
_STATEMENT_TIMEOUT_S = 3_600.0
_POTS = ("cycle", "bundle", "prepaid", "overage")

Difference = tuple[str, Any, Any]
"""What differs, what was expected, what was found."""


@dataclass(slots=True)
class Report:
    """Writes each difference as it is found, and at the end how much was checked."""

    out: TextIO
    checked: dict[str, int] = field(default_factory=dict)
    differences: int = 0

    def count(self, what: str, number: int = 1) -> None:
        self.checked[what] = self.checked.get(what, 0) + number

    def differ(self, subject: str, found: Iterator[Difference] | Sequence[Difference]) -> None:
        for what, expected, actual in found:
            self.differences += 1
            self.out.write(f"DIFFERENCE  {subject}  {what}: expected {expected}, found {actual}\n")

    def finish(self) -> int:
        width = max(map(len, self.checked), default=0)
        for what, number in self.checked.items():
            self.out.write(f"{what:<{width}}  {number:>12,}\n")
        self.out.write(f"{'differences':<{width}}  {self.differences:>12,}\n")
        return 1 if self.differences else 0


def main(settings: Settings, *, recompute: bool) -> int:
    """Return 0 where everything agrees, 1 with differences, 2 where it could not run."""
    if not settings.redis_url or not settings.postgres_url:
        return _refuse("it needs OBOL_REDIS_URL and OBOL_POSTGRES_URL, or the --data-dir of a running obol up")
    try:
        return asyncio.run(audit(settings, sys.stdout, recompute=recompute))
    except (LedgerAway, ObolError, asyncpg.PostgresError) as error:
        return _refuse(str(error))


def _refuse(reason: str) -> int:
    sys.stderr.write(f"the audit could not run: {reason}\n")
    return 2


async def audit(settings: Settings, out: TextIO, *, recompute: bool) -> int:
    """Run every check. `recompute`: price every stored charge again, else the latest CHARGES_BY_DEFAULT."""
    report = Report(out)
    async with _engines(settings) as (store, connection):
        wallets = Wallets(
            connection, Keys(), record_ttl_s=settings.settled_record_ttl_s, report_ttl_s=settings.report_record_ttl_s
        )
        holds = OpenHolds(connection, wallets, settings.ledger_shards)
        await WalletAudit(store, wallets, Recovery(connection, Keys()), holds, report).run()
        await check_tables(store, report)
        await ChargeAudit(store, report).run(None if recompute else CHARGES_BY_DEFAULT)
    return report.finish()


@asynccontextmanager
async def _engines(settings: Settings) -> AsyncIterator[tuple[Store, Connection]]:
    connection = Connection(settings.redis_url, scripts.load(), timeout_ms=settings.redis_timeout_ms)
    keeper = asyncio.create_task(connection.run(), name="redis connection")
    store = await Store.connect(settings.postgres_url, pool_max=2)
    try:
        await connection.wait_ready(_ENGINE_WAIT_S)
        yield store, connection
    finally:
        await connection.close()
        keeper.cancel()
        await asyncio.wait([keeper])
        await store.close()


class OpenHolds:
    """Sums of the open holds by wallet."""

    def __init__(self, connection: Connection, wallets: Wallets, shards: int) -> None:
        self._connection = connection
        self._wallets = wallets
        self._shards = shards
        self._keys = Keys()

    async def sums(self) -> dict[str, int]:
        """Nano-dollars by wallet id, of the wallets that have open holds."""
        found: dict[str, int] = {}
        for shard in range(self._shards):
            prefix = self._keys.wallet(shard, "")
            async for wallet_key, amount in self._of(shard):
                wallet_id = wallet_key.decode().removeprefix(prefix)
                found[wallet_id] = found.get(wallet_id, 0) + int(amount)
        return found

    async def _of(self, shard: int) -> AsyncIterator[tuple[bytes, bytes]]:
        cursor = b"0"
        seen: set[bytes] = set()
        while True:
            reply = await self._connection.command("ZSCAN", self._keys.holds(shard), cursor, "COUNT", HOLDS_A_PAGE)
            # A scan may show a member twice.
            members = [member for member in reply[1][::2] if member not in seen]
            seen.update(members)
            holds = await asyncio.gather(*(self._connection.command("HMGET", key, "w", "a") for key in members))
            for wallet_key, amount in holds:
                if wallet_key is not None and amount is not None:
                    yield wallet_key, amount
            cursor = reply[0]
            if cursor == b"0":
                return

    async def differing(self, refs: Sequence[WalletRef]) -> tuple[list[tuple[WalletRef, int, int]], int]:
        """Of wallets whose held amount was not the sum of their holds: those that stay so, and how many were busy.

        Amount and holds cannot be read at one moment, so a wallet counts as different only if it is at rest.
        """
        wrong: list[tuple[WalletRef, int, int]] = []
        busy = 0
        for _ in range(HELD_ATTEMPTS):
            await asyncio.sleep(_PAUSE_S)
            before, sums, after = (
                await self._wallets.balances(refs), await self.sums(), await self._wallets.balances(refs)
            )  # fmt: skip
            wrong, busy = [], 0
            for ref, first, second in zip(refs, before, after, strict=True):
                expected = sums.get(ref.wallet_id, 0)
                amounts = {_held(first), _held(second)}
                if expected not in amounts:
                    wrong.append((ref, expected, _held(second)))
                    busy += len(amounts) > 1
            refs = [ref for ref, _, _ in wrong]
            if not refs:
                break
        return wrong, busy


def _held(balance: Balance | None) -> int:
    return balance.held_nano if balance else 0


class WalletAudit:
    """Every wallet, page by page: its ledger, its row, its state in Redis."""

    def __init__(self, store: Store, wallets: Wallets, recovery: Recovery, holds: OpenHolds, report: Report) -> None:
        self._recovery = recovery
        self._store = store
        self._wallets = wallets
        self._holds = holds
        self._report = report
        self._flush_deadline_s = time.monotonic() + FLUSH_WAIT_S

    async def run(self) -> None:
        open_holds = await self._holds.sums()
        suspects: list[WalletRef] = []
        behind = ""
        while rows := await self._store.rows("audit.wallets_page", behind, WALLETS_A_PAGE):
            refs = [WalletRef(row["wallet_id"], row["shard"], row["merchant_id"]) for row in rows]
            live = await self._page(refs)
            suspects += [
                ref for ref, now in zip(refs, live, strict=True) if _held(now) != open_holds.pop(ref.wallet_id, 0)
            ]
            behind = refs[-1].wallet_id
        self._report.differ("holds", [("open holds of a wallet without a row", 0, key) for key in open_holds])
        await self._check_held(suspects)

    async def _page(self, refs: Sequence[WalletRef]) -> list[Balance | None]:
        live = await self._wallets.balances(refs)
        seqs = [balance.seq if balance else 0 for balance in live]
        rows = await self._flushed([ref.wallet_id for ref in refs], seqs)
        ahead = [ref for ref, seq in zip(refs, seqs, strict=True) if rows[ref.wallet_id]["last_seq"] > seq]
        await self._check_behind(ahead, rows)
        for ref, balance in zip(refs, live, strict=True):
            row = rows[ref.wallet_id]
            self._report.count("wallets")
            self._report.differ(ref.wallet_id, [*ledger_differences(row), *live_differences(row, balance)])
        await self._check_units(refs, rows)
        return live

    async def _check_units(self, refs: Sequence[WalletRef], rows: dict[str, asyncpg.Record]) -> None:
        """Tier counters of wallets at rest: flushed when their rows were read, and not used since."""
        found = await asyncio.gather(*(self._recovery.units(ref) for ref in refs))
        stored = await self._store.rows("audit.units", [ref.wallet_id for ref in refs])
        recorded = {row["wallet_id"]: row["units"] for row in stored}
        for ref, units, now in zip(refs, found, await self._wallets.balances(refs), strict=True):
            expected = recorded.get(ref.wallet_id, {})
            if now is not None and now.seq == rows[ref.wallet_id]["last_seq"] and units != expected:
                self._report.differ(ref.wallet_id, [("units by meter in Redis, by the record", expected, units)])

    async def _flushed(self, wallet_ids: list[str], seqs: list[int]) -> dict[str, asyncpg.Record]:
        """Rows and ledger sums, once the ledger has reached `seqs` or FLUSH_WAIT_S (of the whole audit) are over."""
        while True:
            rows = await self._store.rows("audit.wallets", wallet_ids, seqs)
            reached = {row["wallet_id"]: row["last_seq"] for row in rows}
            waiting = any(reached[key] < seq for key, seq in zip(wallet_ids, seqs, strict=True))
            if not waiting or time.monotonic() > self._flush_deadline_s:
                return {row["wallet_id"]: row for row in rows}
            await asyncio.sleep(_PAUSE_S)

    async def _check_behind(self, refs: list[WalletRef], rows: dict[str, asyncpg.Record]) -> None:
        """Wallets whose rows were ahead: Redis has moved on meanwhile, or it came back with less than was recorded."""
        for ref, now in zip(refs, await self._wallets.balances(refs), strict=True):
            last_seq = rows[ref.wallet_id]["last_seq"]
            if now is not None and now.seq < last_seq:
                self._report.differ(ref.wallet_id, [("entry number in Redis, by the row", last_seq, now.seq)])

    async def _check_held(self, suspects: list[WalletRef]) -> None:
        wrong, busy = await self._holds.differing(suspects) if suspects else ([], 0)
        for ref, expected, found in wrong:
            self._report.differ(ref.wallet_id, [("held in Redis, by its open holds", expected, found)])
        if busy:
            self._report.count("of these changed while they were compared", busy)


def ledger_differences(row: asyncpg.Record) -> Iterator[Difference]:
    """I1 in PostgreSQL: the entries are numbered 1..last_seq and add up to the row."""
    if not row["entries"] == row["max_seq"] == row["last_seq"]:
        expected = f"1..{row['last_seq']}"
        yield "ledger entries", expected, f"{row['entries']} entries up to {row['max_seq']}"
    for pot in _POTS:
        if row[f"{pot}_sum"] != row[f"{pot}_nano"]:
            yield f"{pot} of the row, by the ledger", row[f"{pot}_sum"], row[f"{pot}_nano"]


def live_differences(row: asyncpg.Record, live: Balance | None) -> Iterator[Difference]:
    """I6: Redis shows what the ledger says up to the same entry."""
    if live is None:
        if row["last_seq"]:
            yield "wallet in Redis", f"entry {row['last_seq']}", "nothing"
        return
    if live.seq > row["max_seq"]:
        yield "flushed entries, by Redis", live.seq, row["max_seq"]
        return
    for pot in _POTS:
        if getattr(live, f"{pot}_nano") != row[f"at_{pot}"]:
            yield (
                f"{pot} in Redis, by the ledger up to entry {live.seq}",
                row[f"at_{pot}"],
                getattr(live, f"{pot}_nano"),
            )
    # Of a wallet at rest: a turn, which may change the limit, is an entry.
    if row["limit_nano"] is not None and live.seq == row["last_seq"] and live.limit_nano != row["limit_nano"]:
        yield "overage limit in Redis, by its connection", row["limit_nano"], live.limit_nano


async def check_tables(store: Store, report: Report) -> None:
    """Rows against ledger, index and hourly sums."""
    async with store.connection() as connection:
        counts = await connection.fetchrow(store.sql("audit.counts"), timeout=_STATEMENT_TIMEOUT_S)
        charges = await connection.fetch(store.sql("audit.charges"), timeout=_STATEMENT_TIMEOUT_S)
        hours = await connection.fetch(store.sql("audit.hours"), timeout=_STATEMENT_TIMEOUT_S)
        summed = await connection.fetch(store.sql("audit.summed_hours"), timeout=_STATEMENT_TIMEOUT_S)
        turns = await connection.fetch(store.sql("audit.turns"), timeout=_STATEMENT_TIMEOUT_S)
        turned = await connection.fetch(store.sql("audit.turned"), timeout=_STATEMENT_TIMEOUT_S)
        overdue = await connection.fetch(store.sql("audit.overdue"), TURN_OWED_S, timeout=_STATEMENT_TIMEOUT_S)
        card_charges = await connection.fetchval(store.sql("audit_charges.count"))
        paid = await connection.fetch(store.sql("audit_charges.differing"), timeout=_STATEMENT_TIMEOUT_S)
    for name, title in (
        ("entries", "ledger entries"),
        ("requests", "requests"),
        ("hours", "hourly sums"),
        ("turns", "turns of cycles"),
    ):
        report.count(title, counts[name])
    for row in turns:
        what = f"turn {row['turn_id']}: cycle, bundle, prepaid, overage moved, and how often"
        report.differ(row["wallet_id"], [(what, row["expected"], row["found"])])
    for row in turned:
        found = f"{row['turns']} from number {row['first']} to {row['last']}"
        report.differ(row["subscription_id"], [("turns, by its row", f"up to number {row['number']}", found)])
    for row in overdue:
        report.differ(
            row["wallet_id"], [(f"turn {row['turn_id']}", "applied", f"owed since {row['created_at']:%FT%TZ}")]
        )
    report.count("card charges", card_charges)
    for row in paid:
        report.differ(row["wallet_id"], [(f"{row['charge_id']}: {row['what']}", row["expected"], row["found"])])
    if counts["indexed"] != counts["requests"]:
        report.differ("requests", [("rows, by request_index", counts["indexed"], counts["requests"])])
    if counts["rejects"]:
        report.differ("journal", [("entries in flush_rejects", 0, counts["rejects"])])
    for row in charges:
        report.differ(row["wallet_id"], [("charges of its requests, by its ledger", row["debits"], row["charges"])])
    for row in hours:
        subject = f"{row['merchant_id']} {row['hour']:%Y-%m-%dT%HZ} {row['connection_id']} {row['meter_id']}".rstrip()
        what = "hourly requests, tokens, cost, fee, charge, by the requests"
        report.differ(subject, [(what, row["expected"], row["found"])])
    for row in summed:
        subject = f"{row['merchant_id']} {row['hour']:%Y-%m-%dT%HZ} {row['name']}".rstrip()
        what = f"hourly requests, tokens, cost, fee, charge of a {row['of']}, by those of customers by meter"
        report.differ(subject, [(what, row["expected"], row["found"])])


class ChargeAudit:
    """I7: prices stored usage again."""

    def __init__(self, store: Store, report: Report) -> None:
        self._store = store
        self._report = report
        self._versions = MeterVersions(store)
        self._books: dict[str, PriceBook | None] = {}

    async def run(self, latest: int | None) -> None:
        """The `latest` requests, or all. Rows come in batches over a cursor."""
        self._report.count("charges recomputed", 0)
        name, arguments = ("audit.all_charges", ()) if latest is None else ("audit.latest_charges", (latest,))
        async with self._store.transaction() as connection:
            cursor = await connection.cursor(self._store.sql(name), *arguments, timeout=_STATEMENT_TIMEOUT_S)
            while rows := await cursor.fetch(CHARGES_A_BATCH, timeout=_STATEMENT_TIMEOUT_S):
                await self._batch(rows)

    async def _batch(self, rows: list[asyncpg.Record]) -> None:
        meters = await self._versions.get(
            (row["meter_id"], row["meter_version"]) for row in rows if row["meter_id"] is not None
        )
        for row in rows:
            self._report.count("charges recomputed")
            subject = f"{row['wallet_id']} {row['request_id']}"
            meter = meters.get((row["meter_id"], row["meter_version"]))
            if row["meter_id"] is not None and meter is None:
                version = f"{row['meter_id']} version {row['meter_version']}"
                self._report.differ(subject, [("meter version", version, "nothing")])
            else:
                self._report.differ(subject, [each async for each in self._differences(row, meter)])

    async def _differences(self, row: asyncpg.Record, meter: Meter | None) -> AsyncIterator[Difference]:
        usage = msgspec.json.decode(row["usage"], type=Usage)
        book = await self._book(row["price_version"]) if row["price_version"] is not None else None
        if row["price_version"] is not None and book is None:
            yield "price book", row["price_version"], "nothing"
            return
        cost = book.cost(row["provider"], row["model"], usage, row["service_tier"]) if book and row["model"] else None
        costs = (cost.input_nano, cost.output_nano, cost.total_nano) if cost else (0, 0, 0)
        for name, expected in zip(("input_cost_nano", "output_cost_nano", "cost_nano"), costs, strict=True):
            if row[name] != expected:
                yield name, expected, row[name]
        charge_nano, passed_on_nano = expected_charge(row, usage, costs[2], meter)
        if row["charge_nano"] != charge_nano and not await self._explained(row, usage, costs[2], meter, charge_nano):
            yield "charge_nano", charge_nano, row["charge_nano"]
        elif row["fee_nano"] != row["charge_nano"] - passed_on_nano:
            yield "fee_nano", row["charge_nano"] - passed_on_nano, row["fee_nano"]

    async def _explained(
        self, row: asyncpg.Record, usage: Usage, cost_nano: int, meter: Meter | None, charge_nano: int
    ) -> bool:
        """Whether an expiry made the charge differ: it debits progress, before the usage is final."""
        expiry = await self._store.row("audit.expiry", row["wallet_id"], row["request_id"])
        if expiry is None or row["ending"] == "expired":
            return False
        if meter is None or not meter.graduated or expiry["late_units"] is None:
            # Settled afterwards: the final charge, but never less than what had been debited already.
            return bool(row["charge_nano"] == max(expiry["debit"], charge_nano))
        units = meter.units(usage)
        counter = expiry["late_position"] + units - expiry["late_units"]
        if expiry["turn_seq"] is not None:  # the counter began anew in between, and a position is never below 0
            since = (row["wallet_id"], expiry["turn_seq"], meter.meter_id, expiry["late_seq"])
            found = await self._store.row("audit.units_since", *since)
            counter = found["units"] if found is not None else 0
        return after_expiry(expiry, meter, units, cost_nano, row["charge_nano"], counter)

    async def _book(self, version: str) -> Book | None:
        """The book of a charge: of the installation, or with the prices of its merchant before them."""
        base, joint, own = version.partition(JOINT)
        installation, merchant = await self._stored_book(base), await self._stored_book(own) if joint else None
        if not joint or installation is None:
            return installation
        return None if merchant is None else MerchantBook(installation, merchant)

    async def _stored_book(self, version: str) -> PriceBook | None:
        if version not in self._books:
            row = await self._store.row("audit.price_book", version)
            if len(self._books) >= PRICE_BOOKS_KEPT_MAX:
                self._books.pop(next(iter(self._books)))
            self._books[version] = PriceBook.from_json(gzip.decompress(row["content"])) if row else None
        return self._books[version]


def after_expiry(
    expiry: asyncpg.Record, meter: Meter, units: int, cost_nano: int, charge_nano: int, counter: int
) -> bool:
    """Whether `charge_nano` is what a late settlement under tiers comes to: the progress at the position of then, what
    was new where the counter stood at the settlement (lua/includes/tiers.lua)."""
    if meter.rate_type == "percentage":  # the cost of then is not recorded
        return bool(expiry["debit"] <= charge_nano <= expiry["debit"] + meter.ceiling(units, cost_nano))
    fee = meter.fee(expiry["units"], 0, expiry["position"]) + meter.fee(expiry["late_units"], 0, counter)
    return bool(charge_nano == max(expiry["debit"], meter.passed_on(cost_nano) + fee))


def expected_charge(row: asyncpg.Record, usage: Usage, cost_nano: int, meter: Meter | None) -> tuple[int, int]:
    """What the customer owes for a stored request, and the part of it that is the provider's cost passed on."""
    reported, customer = row["billing_mode"] == "report", row["billing_mode"] == "customer"
    expired = row["ending"] == "expired" and usage != ZERO
    if not (reported or customer) or not (row["ending"] in BILLED or expired):
        return 0, 0
    if meter is None:
        return (cost_nano, cost_nano) if customer else (0, 0)
    charge = meter.charge(usage, cost_nano, row["tier_position"])
    return charge.amount_nano, charge.amount_nano - charge.fee_nano
