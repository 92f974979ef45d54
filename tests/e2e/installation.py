"""A gateway with its provider in a thread and event loop of its own, so that tests may use clients that block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from running import RunningGateway, running_gateway

from gateway.billing.accounts import NewConnection
from gateway.local.fake.records import Record
from gateway.testing import FakeProvider

T = TypeVar("T")

CREDIT_NANO = 25 * 10**9
TOKEN_NANO = 20_000
"""What the meter of `running_gateway` asks for a token."""
START_TIMEOUT_S = 60
CALL_TIMEOUT_S = 30
ROW_TIMEOUT_S = 5


@dataclass(frozen=True)
class Customer:
    """Somebody who pays: `token` is the key to give to a client."""

    made: NewConnection
    token: str


class Installation:
    """A running gateway, asked from other threads. `url` is its base URL without a path."""

    def __init__(self, gateway: RunningGateway, loop: asyncio.AbstractEventLoop) -> None:
        self.url = gateway.url
        self.gateway = gateway
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def customer(self, credit_nano: int = CREDIT_NANO) -> Customer:
        made = self.run(self.gateway.customer(credit_nano))
        return Customer(made, self.gateway.token_for(made))

    def rows(self, customer: Customer) -> list[dict[str, Any]]:
        """The request rows of a customer, oldest first."""
        return self.run(self.gateway.rows("connection_id = $1", customer.made.connection_id))

    def row(self, customer: Customer, *, credit_nano: int = CREDIT_NANO) -> dict[str, Any]:
        """The only request row of a customer who had this credit, which the balance must agree with.

        Where tokens are counted, the row follows the answer; so it is waited for.
        """
        deadline_s = time.monotonic() + ROW_TIMEOUT_S
        while not (found_rows := self.rows(customer)) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        (found,) = found_rows
        balance = self.run(self.gateway.balance(customer.made))
        assert credit_nano - balance.cycle_nano == found["charge_nano"]
        return found

    def seen(self) -> list[Record]:
        """What the provider has been asked since the last `forget`."""
        return self.gateway.provider.requests

    def forget(self) -> None:
        self.gateway.provider.clear()


@contextlib.contextmanager
def installation(
    valkey: str, postgres: str, provider: Callable[[], FakeProvider], *, more_origins: Iterable[str] = ()
) -> Iterator[Installation]:
    """Started when the block begins, ended when it is left; what failed in its thread is raised here."""
    started: list[Installation] = []
    failed: list[BaseException] = []
    end = threading.Event()

    async def live() -> None:
        async with provider() as fake, running_gateway(valkey, postgres, fake, more_origins=more_origins) as gateway:
            started.append(Installation(gateway, asyncio.get_running_loop()))
            await asyncio.to_thread(end.wait)

    def thread() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            failed.append(error)

    running = threading.Thread(target=thread, name="installation", daemon=True)
    running.start()
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not (started or failed) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    try:
        if started:
            yield started[0]
    finally:
        end.set()
        running.join(START_TIMEOUT_S)
    if failed:
        raise failed[0]
    assert started, f"the gateway did not start within {START_TIMEOUT_S} s"
