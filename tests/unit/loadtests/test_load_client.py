from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from load_servers import Scripted, provider, serving

from loadtests.load import Load
from loadtests.plan import Plan
from loadtests.result import Result, corrected_latency
from loadtests.tally import Tally, Window

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
STALL_FROM_S, STALL_TO_S = 0.2, 0.7


async def load(target: str, **settings: object) -> Window:
    total = Window()
    await Load(Plan(target=target, **settings), total.merge).run()  # type: ignore[arg-type]
    return total


def stalled() -> Callable[[], asyncio.Protocol]:
    """A server that answers at once, but nothing between 0.2 s and 0.7 s after its first request."""
    first: list[float] = []

    def delay_s() -> float:
        now = asyncio.get_running_loop().time()
        first.append(now)
        since = now - first[0]
        return STALL_TO_S - since if STALL_FROM_S <= since < STALL_TO_S else 0.0

    return lambda: Scripted(OK, delay_s)


async def test_an_open_loop_charges_a_stall_to_every_request_that_was_due_in_it() -> None:
    async with serving(stalled()) as target:
        tally = (await load(target, users=2, duration_s=1.0, rate_per_s=200)).all_kinds()
    assert tally.succeeded == pytest.approx(200, abs=2)
    assert not tally.failed
    # Half of the second was a stall: about 100 requests waited for up to half a second, but only two were on the wire.
    assert tally.latency.percentile(75) > 100_000_000
    assert tally.latency.largest > 400_000_000
    assert tally.service.percentile(75) < tally.latency.percentile(75)


def test_a_closed_loops_correction_shows_the_stall_that_its_raw_times_hide() -> None:
    tally = Tally()
    tally.latency.record(1_000_000, times=1_000)
    tally.latency.record(500_000_000, times=2)  # two users, both in the one stall of a second
    window = Window(tallies={"chat": tally})
    plan = Plan(target="http://127.0.0.1:1", users=2, duration_s=1.0)
    result = Result(target=plan.target, plan=plan, processes=1, elapsed_s=1.0, windows=[window])
    assert tally.latency.percentile(99) < 2_000_000
    assert corrected_latency(result, tally).percentile(75) > 100_000_000


async def test_what_was_due_and_never_sent_is_an_error_with_its_waiting_time() -> None:
    async with serving(lambda: Scripted(OK, lambda: 5.0)) as target:
        tally = (await load(target, users=1, duration_s=0.3, rate_per_s=100, grace_s=0.2)).all_kinds()
    assert tally.succeeded == 0
    assert tally.failed["unfinished at the end"] == 1
    assert tally.failed["never sent"] == pytest.approx(29, abs=1)
    assert tally.latency.total == tally.failures
    assert tally.latency.smallest >= 190_000_000


async def test_streams_are_counted_by_chunk_with_their_gaps() -> None:
    async with serving(provider()) as target:
        plan = {"scenario": "stream", "users": 4, "duration_s": 0.02, "chunks": 10, "chunk_interval_ms": 10}
        tally = (await load(target, **plan)).tally("stream")
    assert (tally.succeeded, tally.failures) == (4, 0)
    assert tally.chunks == 4 * (10 + 4)  # role, finish reason, usage and the end marker besides the content
    assert tally.chunk_gap.percentile(50) == pytest.approx(10_000_000, rel=0.5)
    assert tally.first_byte.percentile(50) < tally.latency.percentile(50)


@pytest.mark.parametrize(
    ("answer", "close", "scenario", "reason"),
    [
        (b"HTTP/1.1 402 Payment Required\r\nContent-Length: 0\r\n\r\n", False, "chat", "status 402"),
        (b"\x00 not http", False, "chat", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", True, "chat", "connection closed"),
        (OK, False, "stream", "stream cut short"),
    ],
)
async def test_a_bad_answer_is_counted_by_its_reason(answer: bytes, close: bool, scenario: str, reason: str) -> None:
    async with serving(lambda: Scripted(answer, lambda: 0.01, close)) as target:
        tally = (await load(target, scenario=scenario, users=2, duration_s=0.1)).all_kinds()
    assert tally.succeeded == 0
    assert set(tally.failed) == {reason}


async def test_a_request_without_an_answer_ends_at_its_timeout() -> None:
    async with serving(lambda: Scripted(OK, lambda: 60.0)) as target:
        tally = (await load(target, users=1, duration_s=0.2, timeout_s=0.1, grace_s=1)).all_kinds()
    assert tally.failed.keys() == {"timeout"}
    assert 100_000_000 <= tally.latency.smallest < 400_000_000


async def test_a_response_over_the_limit_is_dropped() -> None:
    async with serving(lambda: Scripted(OK)) as target:
        tally = (await load(target, users=1, duration_s=0.1, response_bytes_max=1)).all_kinds()
    assert tally.failed.keys() == {"response too large"}


async def test_a_target_that_does_not_listen_is_an_error_and_no_hang() -> None:
    async with serving(provider()) as target:
        pass
    window = await asyncio.wait_for(load(target, users=3, duration_s=0.2, grace_s=0.1), 5)
    assert window.all_kinds().succeeded == 0
    assert window.tally("connect").failed["connect"] >= 3


def test_tallies_merge_reason_by_reason() -> None:
    left, right = Tally(succeeded=1), Tally(succeeded=2, chunks=5)
    left.fail("timeout")
    right.fail("timeout")
    right.fail("status 500")
    left.merge(right)
    assert (left.succeeded, left.chunks, left.failed) == (3, 5, {"timeout": 2, "status 500": 1})
