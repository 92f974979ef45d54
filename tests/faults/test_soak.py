"""Check 12: under mixed traffic memory and descriptors are flat.

60 s by default, OBOL_SOAK_S=600 for ten: the second half is judged, however long the first WARM_CALLS take.
The slopes are those of least squares.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from process_figures import descriptors, resident_bytes
from processes import gateway_process, process_environment
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat
from yarl import URL

from gateway.billing.accounts import NewConnection
from gateway.testing import FakeProvider, steering_header

SOAK_S = int(os.environ.get("OBOL_SOAK_S", "60"))
CALLERS = 12
PAUSE_S = 0.02
SAMPLE_INTERVAL_S = 0.5
WARM_CALLS = 6_000
"""After some 4,000 calls each path was taken so often that caches, buffers and the allocator's arenas have grown up."""
WARM_MAX_S = 240
GROWTH_BYTES_MAX = 8 * 1024 * 1024
"""However long. The allocator moves in steps of one to three megabytes; the 5,000 calls of a minute show a leak of
1.6 kB each, the five minutes of OBOL_SOAK_S=600 one of 0.3 kB."""
GROWTH_DESCRIPTORS_MAX = 8
SHORT_LIVES = {"settled_record_ttl_s": 15, "report_record_ttl_s": 15, "progress_interval_ms": 200, "hold_ttl_s": 20}
LEFT = (aiohttp.ClientError, ConnectionError, TimeoutError)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(SOAK_S + WARM_MAX_S + 120)]

STREAM = chat(stream=True)
# How often each way of calling is taken, the request, what the provider does, and how much of the answer is read.
WAYS: list[tuple[int, dict[str, Any], dict[str, Any], str]] = [
    (30, STREAM, {}, "all"),
    (8, STREAM, {"chunks": 120, "chunk_delay_ms": 5}, "all"),
    (20, chat(), {}, "all"),
    (8, STREAM, {"chunks": 60, "chunk_delay_ms": 10}, "some"),
    (4, STREAM, {"delay_ms": 100}, "none"),
    (4, chat(), {"fault": "status:500"}, "all"),
    (3, chat(), {"fault": "reset_before_first_byte"}, "all"),
    (4, STREAM, {"fault": "reset_mid_stream", "chunks": 10}, "all"),
    (3, STREAM, {"fault": "error_event"}, "all"),
    (3, STREAM, {"fault": "no_usage"}, "all"),
    (2, STREAM, {"fault": "truncated"}, "all"),
    (2, chat(max_tokens=10**9), {}, "all"),
    (2, chat(model=""), {}, "all"),
]


class Traffic:
    """Callers that go on until told to stop."""

    def __init__(self, own: RunningGateway, customers: list[NewConnection], url: str, seed: int) -> None:
        self._own = own
        self._customers = customers
        self._url = url
        self._random = random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self._reports = 0
        self.over = False

    @property
    def calls(self) -> int:
        return sum(self.statuses.values())

    async def caller(self, session: aiohttp.ClientSession) -> None:
        while not self.over:
            with suppress(*LEFT):
                await self._choose()(session)
            await asyncio.sleep(PAUSE_S)

    def _choose(self) -> Callable[[aiohttp.ClientSession], Any]:
        return self._random.choices((self._call, self._report, self._stranger), (90, 7, 3))[0]

    async def _call(self, session: aiohttp.ClientSession) -> None:
        _, body, steer, read = self._random.choices(WAYS, [way[0] for way in WAYS])[0]
        token = self._own.token_for(self._random.choice(self._customers))
        headers = {"Authorization": f"Bearer {token}", **steering_header(**steer)}
        sending = session.post(URL(f"{self._url}/v1/forward?u={CHAT}", encoded=True), json=body, headers=headers)
        if read == "none":
            self.statuses["left before the head"] += 1
            await asyncio.wait_for(sending, 0.05)
        async with sending as answer:
            self.statuses[str(answer.status)] += 1
            if read == "some":
                await answer.content.readany()
                answer.close()
            await answer.read()

    async def _report(self, session: aiohttp.ClientSession) -> None:
        self._reports += 1
        customer = self._random.choice(self._customers)
        body = {
            "request_id": f"soak-{self._reports}",
            "connection_secret": customer.connection_secret,
            "product_secret": self._own.meter.meter_secret,
            "input_tokens": 10,
        }
        headers = {"Authorization": f"Bearer {self._own.merchant.secret_key}"}
        async with session.post(f"{self._url}/v1/requests", json=body, headers=headers) as answer:
            self.statuses[f"report {answer.status}"] += 1
            await answer.read()

    async def _stranger(self, session: aiohttp.ClientSession) -> None:
        """Each with another credential, which must not be remembered for long."""
        token = b64encode(b'{"secret_key":"aks_test_%d"}' % self._random.randrange(10**9)).decode()
        url = URL(f"{self._url}/v1/forward?u={CHAT}", encoded=True)
        async with session.post(url, json=chat(), headers={"Authorization": f"Bearer {token}"}) as answer:
            self.statuses[str(answer.status)] += 1
            await answer.read()


@dataclass(frozen=True)
class Slope:
    """Growth over a run, and how much there is at its end."""

    growth: float
    last: float

    @classmethod
    def of(cls, xs: Sequence[float], ys: Sequence[float]) -> Slope:
        mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = sum((x - mean_x) ** 2 for x in xs)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
        return cls(slope * (xs[-1] - xs[0]), ys[-1])


class Samples:
    """Memory and descriptors of some processes over time."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._times_s: list[float] = []
        self._bytes: dict[str, list[float]] = {name: [] for name in pids}
        self._descriptors: dict[str, list[float]] = {name: [] for name in pids}

    async def take(self, for_s: float) -> None:
        until_s = time.monotonic() + for_s
        while time.monotonic() < until_s:
            self._times_s.append(time.monotonic())
            for name, pid in self._pids.items():
                self._bytes[name].append(resident_bytes(pid))
                self._descriptors[name].append(descriptors(pid))
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    def memory(self, name: str) -> Slope:
        return Slope.of(self._times_s, self._bytes[name])

    def descriptors(self, name: str) -> Slope:
        return Slope.of(self._times_s, self._descriptors[name])

    def told(self, name: str) -> str:
        memory, opened = self.memory(name), self.descriptors(name)
        return (
            f"{name} {memory.growth / 1024:+.0f} KiB at {memory.last / 1024 / 1024:.0f} MiB, "
            f"{opened.growth:+.1f} descriptors at {opened.last:.0f}"
        )


@asynccontextmanager
async def worker_process(environment: dict[str, str], directory: Path) -> AsyncIterator[int]:
    """`obol worker`, ended with exit code 0. Its pid."""
    ready = directory / "worker.ready"
    command = (sys.executable, "-m", "gateway", "worker", "--ready-file", str(ready))
    with (directory / "worker.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(60):
            while not ready.exists():
                await asyncio.sleep(0.05)
        yield process.pid
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_memory_and_descriptors_stay_flat(
    valkey: str,
    redis_client: redis.asyncio.Redis,
    postgres: str,
    tmp_path: Path,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as own,
        gateway_process(valkey, postgres, provider, tmp_path, **SHORT_LIVES) as gateway,
        worker_process(process_environment(valkey, postgres, provider, tmp_path, **SHORT_LIVES), tmp_path) as worker,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
    ):
        customers = [await own.customer(10**13) for _ in range(20)]
        traffic = Traffic(own, customers, gateway.url, seed)
        samples = Samples({"gateway": gateway.process.pid, "worker": worker})
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(traffic.caller(session))
            async with asyncio.timeout(SOAK_S / 2 + WARM_MAX_S):
                while time.monotonic() < began_s + SOAK_S / 2 or traffic.calls < WARM_CALLS:
                    await asyncio.sleep(SAMPLE_INTERVAL_S)
            await samples.take(SOAK_S / 2)
            traffic.over = True
        told = f"soak, the last {SOAK_S // 2} s: {samples.told('gateway')}; {samples.told('worker')}"
        print(told, dict(traffic.statuses))
        record_property("scenario", told)
        record_property("calls", traffic.calls)
        record_property("took s", f"{time.monotonic() - began_s:.0f}")
        for name in ("gateway", "worker"):
            assert samples.memory(name).growth < GROWTH_BYTES_MAX
            assert samples.descriptors(name).growth < GROWTH_DESCRIPTORS_MAX
        assert {"200", "401", "402", "500", "502", "report 200"} <= traffic.statuses.keys()
        async with asyncio.timeout(45):
            while any([(await own.balance(customer)).held_nano for customer in customers]):
                await asyncio.sleep(0.2)
