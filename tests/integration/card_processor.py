"""A card processor that remembers what it did, and fails on demand: in this process, or in another one over HTTP.

It keeps the promises of `gateway/cards/contract.py`: an attempt sent twice is done once, a charge succeeds once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Literal

import aiohttp
import msgspec
from aiohttp import web

from gateway.cards.contract import (
    Card,
    ChargeOrder,
    ChargeResult,
    Mode,
    OrderChanged,
    OutcomeUnknown,
    ProcessorEvent,
    ProcessorRefused,
    RefundResult,
    Setup,
    SetupResult,
)

Act = Literal["decline", "authenticate", "lost", "late", "cut", "never", "refuse", "undecided", "slow"]
"""What it does with a charge, besides making it. lost: acts, and its answer does not arrive. late: gives no answer, and
acts after that. cut: does nothing and does not answer. never: hangs. undecided: acts when it is asked next.
slow: acts and answers after a moment."""
LATE_S = 0.3
SLOW_S = 0.05
CARD = Card("pm_good", "visa", "4242", 12, 2031)
BAD_CARD = Card("pm_bad", "visa", "0002", 12, 2031)


class Made(msgspec.Struct):
    """What became of one attempt."""

    order: ChargeOrder
    result: ChargeResult


class Machine:
    """The truth. `script`: what happens to the next charges; where it is empty, good cards pay and bad ones do not."""

    def __init__(self) -> None:
        self.attempts: dict[str, dict[int, Made]] = {}
        """By charge and attempt, in their order."""
        self.script: deque[Act] = deque()
        self.calls: Counter[str] = Counter()
        self.orders: list[ChargeOrder] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def succeeded(self) -> dict[str, int]:
        """Cents taken, by charge."""
        paid: dict[str, int] = {}
        for charge_id, attempts in self.attempts.items():
            won = [made for made in attempts.values() if made.result.status == "succeeded"]
            assert len(won) <= 1, "a charge succeeded twice"
            if won:
                paid[charge_id] = won[0].order.amount_cents
        return paid

    async def charge(self, order: ChargeOrder) -> ChargeResult:
        self.calls["charge"] += 1
        self.orders.append(order)
        act = self.script.popleft() if self.script else None
        if act == "never":
            await asyncio.sleep(3_600)
        if act == "refuse":
            raise ProcessorRefused("the key is not known")
        if act == "cut":
            raise OutcomeUnknown("the connection was cut before it acted")
        if act == "late":
            task = asyncio.create_task(self._later(order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            raise OutcomeUnknown("it acts later")
        if act == "slow":
            await asyncio.sleep(SLOW_S)
        result = self._act(order, act)
        if act == "lost":
            raise OutcomeUnknown("the answer was lost")
        return result

    async def find(self, order: ChargeOrder) -> ChargeResult | None:
        self.calls["find"] += 1
        won = next((each for each in self._of(order.charge_id) if each.result.status == "succeeded"), None)
        made = won or self.attempt(order)
        if made is not None and made.result.status == "processing":
            made.result = ChargeResult("succeeded", made.result.processor_ref)
        return made.result if made is not None else None

    def attempt(self, order: ChargeOrder) -> Made | None:
        """What became of this attempt; None where it never arrived."""
        return self.attempts.get(order.charge_id, {}).get(order.attempt)

    def approve(self, charge_id: str) -> ChargeResult:
        """The customer authenticates the latest attempt, which then succeeds."""
        latest = self._of(charge_id)[-1]
        latest.result = ChargeResult("succeeded", latest.result.processor_ref)
        return latest.result

    async def _later(self, order: ChargeOrder) -> None:
        await asyncio.sleep(LATE_S)
        self._act(order, None)

    def _act(self, order: ChargeOrder, act: Act | None) -> ChargeResult:
        before = self.attempt(order)
        if before is not None:
            if before.order != order:
                raise OrderChanged("another order under this id")
            return before.result
        won = next((each for each in self._of(order.charge_id) if each.result.status == "succeeded"), None)
        if won is not None:
            return won.result
        for each in self._of(order.charge_id):  # called off: it cannot succeed any more
            each.result = ChargeResult("declined", each.result.processor_ref, "called_off")
        ref = f"pi_{order.charge_id}_{order.attempt}"
        if act == "authenticate":
            result = ChargeResult("requires_action", ref, "authentication_required", "secret")
        elif act == "undecided":
            result = ChargeResult("processing", ref)
        elif act == "decline" or order.method_ref == BAD_CARD.method_ref:
            result = ChargeResult("declined", ref, "generic_decline")
        else:
            result = ChargeResult("succeeded", ref)
        self.attempts.setdefault(order.charge_id, {})[order.attempt] = Made(order, result)
        return result

    def _of(self, charge_id: str) -> list[Made]:
        return list(self.attempts.get(charge_id, {}).values())


class InProcess:
    """The Processor of a Machine beside it. Only charges: a card comes from elsewhere."""

    name = "sandbox"

    def __init__(self, machine: Machine, mode: Mode = "test") -> None:
        self._machine = machine
        self.mode: Mode = mode

    async def charge(self, order: ChargeOrder) -> ChargeResult:
        return await self._machine.charge(order)

    async def find(self, order: ChargeOrder, written_at_s: int) -> ChargeResult | None:
        return await self._machine.find(order)

    async def customer(self, payer_id: str, *, email: str | None, name: str | None, phone: str | None) -> str:
        return f"cus_{payer_id}"

    async def begin_setup(self, setup_id: str, customer_ref: str) -> Setup:
        raise NotImplementedError

    async def finish_setup(self, setup_ref: str) -> SetupResult:
        raise NotImplementedError

    async def detach(self, method_ref: str) -> None:
        raise NotImplementedError

    async def refund(self, refund_id: str, processor_ref: str, amount_cents: int) -> RefundResult:
        raise NotImplementedError

    def event(self, body: bytes, headers: Mapping[str, str]) -> ProcessorEvent | None:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


class OverHttp(InProcess):
    """The same of a Machine in another process. What breaks on the way is an unknown outcome."""

    def __init__(self, url: str) -> None:
        super().__init__(Machine())
        self._url = url

    async def charge(self, order: ChargeOrder) -> ChargeResult:
        found = await self._ask("charge", order)
        assert found is not None
        return found

    async def find(self, order: ChargeOrder, written_at_s: int) -> ChargeResult | None:
        return await self._ask("find", order)

    async def _ask(self, what: str, order: ChargeOrder) -> ChargeResult | None:
        body = msgspec.json.encode(order)
        try:
            async with aiohttp.ClientSession() as session, session.post(f"{self._url}/{what}", data=body) as reply:
                said = await reply.read()
        except aiohttp.ClientError as error:
            raise OutcomeUnknown(str(error)) from error
        if reply.status == 400:
            raise ProcessorRefused(said.decode())
        if reply.status != 200:
            raise OutcomeUnknown(said.decode())
        return msgspec.json.decode(said, type=ChargeResult | None)


class Served:
    """A Machine at an HTTP address."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        app = web.Application()
        app.router.add_post("/{what}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.url = ""

    async def __aenter__(self) -> Served:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        order: Any = msgspec.json.decode(await request.read(), type=ChargeOrder)
        charging = request.match_info["what"] == "charge"
        try:
            result = await (self._machine.charge(order) if charging else self._machine.find(order))
        except ProcessorRefused as error:
            return web.Response(status=400, text=str(error))
        except OutcomeUnknown as error:
            return web.Response(status=500, text=str(error))
        return web.Response(body=msgspec.json.encode(result))
