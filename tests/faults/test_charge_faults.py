"""I10: whoever is killed at whichever step of a charge, and whatever the processor answers, or when, or how often:
what cards were charged is what was credited, no debt is charged twice, and nobody is credited without a charge."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from card_payers import ALLOWED_NANO, Till, settings
from card_processor import BAD_CARD, CARD, InProcess, Machine, Served
from subscribers import MERCHANT, shop
from worker_support import SHARDS

from gateway.background import Background
from gateway.billing.plans import NewBundle
from gateway.cards.contract import Card, ChargeOrder, ChargeResult
from gateway.core.collection import NANO_A_CENT
from gateway.core.money import NANO
from gateway.failpoints import OF_CHARGE
from gateway.ledger.wallets import WalletRef

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.xdist_group("charges")]

CUSTOMERS = 6
REST_TIMEOUT_S = 40.0
FIRE_TIMEOUT_S = 20.0
NEW_CARD = Card("pm_new", "visa", "1111", 1, 2033)
ACTS = ("lost", "late", "cut", "never", "undecided", "slow", "decline", "authenticate")
ON_THE_WIRE = "on_the_wire"


class Killing(Machine):
    """Tells a second process what it did, as a webhook would: twice, late, and in any order. `on_arrival` is called
    once, when a charge has arrived and before it is made."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.told = Background()
        self.desk: Till | None = None
        self.on_arrival: Callable[[], None] | None = None

    async def charge(self, order: ChargeOrder) -> ChargeResult:
        if self.on_arrival is not None:
            arrived, self.on_arrival = self.on_arrival, None
            arrived()
        try:
            return await super().charge(order)
        finally:
            made = self.attempt(order)
            if self.desk is not None and made is not None and made.result.status != "processing":
                for _ in range(2):
                    self.told.start(self._tell(self.desk, order, made.result), "event")

    async def _tell(self, desk: Till, order: ChargeOrder, result: ChargeResult) -> None:
        await asyncio.sleep(self.rng.random() * 1.5)
        await desk.charges.concluded(order.charge_id, result, attempt=order.attempt)


class Worker:
    """A real worker process, which can be killed and started again."""

    def __init__(self, directory: Path, valkey: str, postgres: str, processor_url: str) -> None:
        self.order_file = directory / "order"
        self._url = processor_url
        self._log = (directory / "worker.log").open("ab")
        given = settings(charge_timeout_ms=400)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OBOL_REDIS_URL": valkey,
            "OBOL_POSTGRES_URL": postgres,
            "OBOL_DATA_DIR": str(directory),
            "OBOL_TEST_MODE": "1",
            "OBOL_FAIL_POINT_FILE": str(self.order_file),
            "OBOL_LEDGER_SHARDS": str(SHARDS),
            "OBOL_FLUSH_INTERVAL_MS": "50",
            "OBOL_OVERAGE_CAP_NANO": str(given.overage_cap_nano),
            "OBOL_CHARGE_TIMEOUT_MS": str(given.charge_timeout_ms),
            "OBOL_CHARGE_ASK_AGAIN_S": str(given.charge_ask_again_s),
            "OBOL_CHARGE_RESEND_AFTER_S": str(given.charge_resend_after_s),
        }
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("charging_worker.py")
        return subprocess.Popen(
            [sys.executable, str(script), self._url], env=self._environment, stdout=self._log, stderr=self._log
        )

    def arm(self, point: str, nth: int) -> None:
        self.order_file.write_text(f"{point}:{nth}:worker")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    async def killed(self) -> float:
        """Wait until it is dead; start another one. Return when that was."""
        async with asyncio.timeout(FIRE_TIMEOUT_S):
            while self.process.poll() is None:
                await asyncio.sleep(0.02)
        assert self.process.returncode == -signal.SIGKILL, "it ended by itself"
        died_s = time.monotonic()
        self.process = self._started()
        return died_s

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


@asynccontextmanager
async def site(
    valkey: str, postgres: str, directory: Path, rng: random.Random
) -> AsyncIterator[tuple[Till, Killing, Worker]]:
    machine = Killing(rng)
    async with Served(machine) as served, shop(valkey, postgres) as market:
        desk = Till(market, InProcess(machine), settings())
        worker = Worker(directory, valkey, postgres, served.url)
        try:
            yield desk, machine, worker
        finally:
            worker.stop()
            await machine.told.drain(5)


@pytest.mark.parametrize("told", [False, True], ids=["asked", "told"])
@pytest.mark.parametrize("point", [*OF_CHARGE, ON_THE_WIRE])
async def test_kill_at_every_step_of_a_charge(
    valkey: str,
    redis_client: Any,
    postgres: str,
    tmp_path: Path,
    seed: int,
    record_property: Callable[[str, object], None],
    point: str,
    told: bool,
) -> None:
    rng, began_s = random.Random(f"{seed} {point} {told}"), time.monotonic()
    async with site(valkey, postgres, tmp_path, rng) as (desk, machine, worker):
        machine.desk = desk if told else None
        refs = await customers(desk)
        machine.script.extend(rng.choices(ACTS, k=CUSTOMERS))  # type: ignore[arg-type]
        if point == ON_THE_WIRE:
            machine.on_arrival = worker.kill
        else:
            worker.arm(point, 1 if point == "charge_written" else rng.randint(1, 3))
        owed = {name: await use(desk, ref, name, rng) for name, ref in refs.items()}
        died_s = await worker.killed()
        await at_rest(desk)
        recovered_s = time.monotonic() - died_s
        await pay_with_new_cards(desk)
        await machine.told.drain(5)
        await at_rest(desk)
        await judge(desk, machine, refs, owed)
    record_property("scenario", f"{point}-{'told' if told else 'asked'}")
    record_property("calls", machine.calls.total())
    record_property("rows", len(machine.succeeded()))
    record_property("recovered in s", f"{recovered_s:.1f}")
    record_property("took s", f"{time.monotonic() - began_s:.1f}")


async def customers(desk: Till) -> dict[str, WalletRef]:
    """Three of them are of one payer; one buys bundles, one has a card that is declined."""
    plan = await desk.plan(1)
    bundles = (NewBundle("Small", 8 * NANO, 10 * NANO),)
    topping = await desk.plan(1, bundles=bundles)
    bundle_id = topping.bundles[0].credit_bundle_id
    refs = {}
    for number in range(CUSTOMERS):
        name = str(number)
        refs[name] = await desk.market.customer(name)
        payer_id = await desk.payers.of_phone("test", f"+1{max(0, number - 2)}")
        await desk.payers.link(MERCHANT, f"con_{name}", payer_id)
        card = BAD_CARD if number == CUSTOMERS - 1 else CARD
        await desk.payers.add_card(payer_id, "sandbox", f"cus_{payer_id}", card)
        chosen = topping if number == CUSTOMERS - 2 else plan
        subscription_id = await desk.market.subscribe(name, chosen, can_charge=True)
        if chosen is topping:
            await desk.market.subscriptions.set_auto_top_up(MERCHANT, subscription_id, bundle_id)
    return refs


async def use(desk: Till, ref: WalletRef, name: str, rng: random.Random) -> int:
    """Usage beyond the plan, in a few reports. Return what it came to, in nano-dollars."""
    parts = [rng.randrange(2 * NANO, 3 * NANO, 2_000) for _ in range(4)]
    for number, part in enumerate(parts):
        await desk.market.spend(ref, f"r{name}-{number}", part)
    return sum(parts)


async def at_rest(desk: Till) -> None:
    """No charge is open, nothing is owed to a wallet, and nobody is to be looked at."""
    async with asyncio.timeout(REST_TIMEOUT_S):
        quiet = 0
        while quiet < 3:
            waiting = await desk.market.obol.journal.lengths(range(SHARDS))
            quiet = 0 if waiting or await desk.busy() else quiet + 1
            await asyncio.sleep(0.1)


async def pay_with_new_cards(desk: Till) -> None:
    """Whoever was declined has another card now."""
    rows = await desk.market.obol.fetch(
        "SELECT DISTINCT c.payer_id FROM collections k JOIN connections c USING (wallet_id) "
        "WHERE k.limited_at IS NOT NULL"
    )
    for row in rows:
        await desk.payers.add_card(row["payer_id"], "sandbox", f"cus_{row['payer_id']}", NEW_CARD)
    await at_rest(desk)


async def judge(desk: Till, machine: Killing, refs: dict[str, WalletRef], spent: dict[str, int]) -> None:
    charges = await desk.market.obol.fetch("SELECT * FROM charges ORDER BY charge_id")
    paid = machine.succeeded()
    said = "\n".join(str(each) for each in charges)
    assert {row["charge_id"]: row["amount_cents"] for row in charges if row["status"] == "succeeded"} == paid, said
    grants = await desk.market.obol.fetch("SELECT grant_id, amount_nano, applied_at FROM grants")
    assert {row["grant_id"] for row in grants} == set(paid) and all(row["applied_at"] for row in grants)
    for name, ref in refs.items():
        own = [row for row in charges if row["wallet_id"] == ref.wallet_id and row["status"] == "succeeded"]
        credit_nano = sum(row["credit_nano"] for row in own)
        balance = await desk.market.balance(ref)
        assert balance.total_nano == NANO + credit_nano - spent[name], said
        overage = [row for row in own if row["kind"] == "overage"]
        taken = sum(row["amount_cents"] for row in overage) * NANO_A_CENT
        assert taken < spent[name] + len(overage) * NANO_A_CENT, "a debt was charged twice"
        assert balance.overage_nano < 5 * NANO and balance.limit_nano == ALLOWED_NANO, said
    assert await desk.market.audit() == ""
