"""Checks 17 and 24: lines of any length, and clients that read slowly or not at all, cost neither memory nor time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from process_figures import forget_peak, peak_bytes, settled_bytes
from processes import gateway_process
from running import RunningGateway, running_gateway
from streaming_provider import USAGE, StreamingProvider, chat_stream, chunk, digest, received, slow_session
from tests_support import CHAT, chat
from yarl import URL

from gateway.billing.accounts import NewConnection

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEGABYTE = 1024 * 1024
PAUSE_MS_MAX = 5.0
PAUSE_TRIES = 4
ONE_STALLED_BYTES_MAX = MEGABYTE
ONE_TRIES = 3
STALLED_BYTES_MAX = MEGABYTE * 3 // 2
"""Of each of several: what was read and not sent yet, what is kept to be counted, and what that leaves in between."""
LONG_LINE_BYTES_MAX = 12 * MEGABYTE
BETWEEN_BYTES_MAX = 12 * MEGABYTE
"""What the kernel may hold of one answer between a provider that is to wait and a client that reads nothing."""
WARM_UP_CALLS = 3
CREDIT_NANO = 10**15
CHARGE_NANO = USAGE["total_tokens"] * 20_000


class Measured:
    """A gateway process, its provider, and a gateway of the test's own that made the merchant and reads the ledger."""

    def __init__(self, own: RunningGateway, provider: StreamingProvider, url: str, pid: int, pauses: Path) -> None:
        self.own = own
        self.provider = provider
        self.url = url
        self.pid = pid
        self._pauses = pauses

    def call(self, session: aiohttp.ClientSession, customer: NewConnection, **more: Any) -> Any:
        """A stream for which the client asks usage itself: its bytes are the provider's."""
        target = URL(f"{self.url}/v1/forward?u={CHAT}", encoded=True)
        headers = {"Authorization": f"Bearer {self.own.token_for(customer)}"}
        asked = {"stream": True, "stream_options": {"include_usage": True}} | more
        return session.post(target, json=chat(**asked), headers=headers)

    def pauses_ms(self, since_s: float) -> list[float]:
        """Processor time between two turns of the event loop, where it was a millisecond or more."""
        lines = (line.split() for line in self._pauses.read_text().splitlines())
        return [float(pause_ms) for at_s, pause_ms in lines if float(at_s) >= since_s]

    async def ended(self, customer: NewConnection, count: int) -> list[dict[str, Any]]:
        """The rows of its calls, once there are so many and no hold is open."""
        async with asyncio.timeout(60):
            while (await self.own.balance(customer)).held_nano:
                await asyncio.sleep(0.05)
        rows = await self.own.rows("connection_id = $1", customer.connection_id)
        assert len(rows) == count
        return rows


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def measured(engines: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Measured]:
    directory = tmp_path_factory.mktemp("measured")
    pauses = directory / "pauses"
    program = (str(Path(__file__).with_name("measured_serve.py")), str(pauses))
    async with (
        StreamingProvider(lambda: chat_stream(MEGABYTE)) as provider,
        running_gateway(*engines, provider) as own,
        gateway_process(*engines, provider, directory, program=program, client_gone_drain_bytes=MEGABYTE) as gateway,
    ):
        yield Measured(own, provider, gateway.url, gateway.process.pid, pauses)


async def warmed_up(
    measured: Measured, session: aiohttp.ClientSession, customer: NewConnection, calls: int = WARM_UP_CALLS
) -> int:
    """The memory of a gateway that has carried such a stream before."""
    for _ in range(calls):
        async with measured.call(session, customer) as answer:
            await received(answer)
    measured.provider.sent_bytes = 0
    return await settled_bytes(measured.pid)


async def stand_still(measured: Measured, size_bytes: int, together: int, read_on: int) -> None:
    """One client that takes the head of its answer and no more, then more until `together`; `read_on` of all go on."""
    pieces = list(chat_stream(size_bytes))
    measured.provider.answer = lambda: chat_stream(16 * MEGABYTE)
    customer = await measured.own.customer(CREDIT_NANO)
    async with slow_session() as session, AsyncExitStack() as calls:
        before_bytes = await warmed_up(measured, session, customer)
        measured.provider.answer = lambda: pieces
        answers: list[aiohttp.ClientResponse] = []

        async def grown_bytes(count: int, since_bytes: int) -> int:
            for _ in range(count):
                answers.append(await calls.enter_async_context(measured.call(session, customer)))
            sent_bytes = await measured.provider.paused()
            grown = await settled_bytes(measured.pid) - since_bytes
            print(f"{len(answers)} calls: paused after {sent_bytes:,} bytes, {grown:,} bytes more memory")
            assert sent_bytes < len(answers) * BETWEEN_BYTES_MAX
            return grown

        one = await grown_bytes(1, before_bytes)
        while one >= ONE_STALLED_BYTES_MAX and len(answers) < ONE_TRIES:  # what takes more once may be the process
            one = await grown_bytes(1, await settled_bytes(measured.pid))
        assert one < ONE_STALLED_BYTES_MAX
        assert await grown_bytes(together - len(answers), before_bytes) < together * STALLED_BYTES_MAX
        for answer in answers[:read_on]:
            assert await received(answer) == digest(pieces)
        for answer in answers[read_on:]:
            answer.close()
    rows = await measured.ended(customer, WARM_UP_CALLS + len(answers))
    tally = Tally(row["ending"] for row in rows)
    assert tally == Tally(completed=WARM_UP_CALLS + read_on, client_gone=len(answers) - read_on)
    assert {row["charge_nano"] for row in rows if row["ending"] == "completed"} == {CHARGE_NANO}


async def test_clients_that_stand_still_stop_their_provider_and_take_no_memory(measured: Measured) -> None:
    """Check 24, in small."""
    await stand_still(measured, 16 * MEGABYTE, together=6, read_on=2)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_fifty_clients_that_stand_still_before_two_hundred_megabytes(measured: Measured) -> None:
    """Check 24."""
    await stand_still(measured, 200 * MEGABYTE, together=50, read_on=1)


LONG = "x = 'word " * (20 * MEGABYTE // 10)
LONG_LINES = {
    "text": [chunk("hi"), chunk(LONG), chunk(None, USAGE), b"data: [DONE]\n\n"],
    "usage at the end of it": [chunk("hi"), chunk(LONG, USAGE), b"data: [DONE]\n\n"],
    "no line end": [chunk("hi"), chunk(None, USAGE), b"data: [DONE]\n\n", b"data: " + LONG.encode()],
}


@pytest.mark.parametrize(
    ("name", "asks"), [("text", True), ("text", False), ("usage at the end of it", True), ("no line end", False)]
)
async def test_one_line_of_twenty_megabytes_passes_and_is_metered(measured: Measured, name: str, asks: bool) -> None:
    """Check 17: nothing holds the event loop up for more than 5 ms, and the memory stays flat."""
    pieces = LONG_LINES[name]
    hidden = [] if asks else [chunk(None, USAGE)]
    measured.provider.answer = lambda: pieces
    customer = await measured.own.customer(CREDIT_NANO)
    pauses_ms = []
    async with slow_session() as session:
        before_bytes = await warmed_up(measured, session, customer, calls=1)
        forget_peak(measured.pid)
        for _ in range(PAUSE_TRIES):  # what takes long once may have been the machine
            began_s = time.time()
            async with measured.call(session, customer, stream_options={"include_usage": asks}) as answer:
                assert await received(answer) == digest(piece for piece in pieces if piece not in hidden)
            pauses_ms.append(max(measured.pauses_ms(began_s), default=0.0))
            if pauses_ms[-1] <= PAUSE_MS_MAX:
                break
        rows = await measured.ended(customer, 1 + len(pauses_ms))
        grown_bytes = peak_bytes(measured.pid) - before_bytes
    print(f"{name}, {asks}: longest pause {pauses_ms} ms, {grown_bytes:,} bytes more memory at the most")
    assert {(row["ending"], row["charge_nano"], row["estimated"]) for row in rows} == {
        ("completed", CHARGE_NANO, False)
    }
    assert grown_bytes < LONG_LINE_BYTES_MAX
    assert pauses_ms[-1] <= PAUSE_MS_MAX
