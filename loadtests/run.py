"""Runs a plan: client processes, their figures merged second by second, and the local target's CPU and memory."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from loadtests import procfs
from loadtests.plan import Plan, PlanError, is_loopback
from loadtests.result import Result, TargetSample
from loadtests.tally import Window

LINE_BYTES_MAX = 16 * 1024 * 1024
STOP_TIMEOUT_S = 10
WHOLE_WINDOW_NS = 500_000_000
"""A shorter window (the end of a run) is no line of progress, and no point of a chart."""
Progress = Callable[[Window, list[TargetSample]], None]


def split(plan: Plan, processes: int) -> list[Plan]:
    """`plan` shared out: users and rate add up to the whole, each run id differs."""
    if processes > plan.users:
        raise PlanError(f"--processes {processes} is more than --users {plan.users}")
    shares = []
    for index in range(processes):
        users = plan.users // processes + (index < plan.users % processes)
        rate = plan.rate_per_s * users / plan.users
        shares.append(msgspec.structs.replace(plan, users=users, rate_per_s=rate, run_id=f"{plan.run_id}-{index}"))
    return shares


class Target:
    """The processes behind a URL, where they are local and may be read."""

    def __init__(self, url: str, pids: tuple[int, ...] = ()) -> None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        local = is_loopback(url)
        self.pids = pids or (procfs.listeners(port) if local else ())
        self.note = "" if self.pids else ("no readable process listens there" if local else "the target is not local")
        self.memory_kind = "PSS"
        self.samples: list[TargetSample] = []
        self._started = time.monotonic()

    def sample(self) -> None:
        if self.pids:
            usage = procfs.usage(self.pids)
            self.memory_kind = "PSS" if usage.proportional else "RSS"
            at_s = time.monotonic() - self._started
            self.samples.append(TargetSample(at_s, usage.cpu_us, usage.memory_bytes))


class _Merge:
    """Windows of several processes, by second; a second is reported when every process has sent it."""

    def __init__(self, processes: int, progress: Callable[[Window], None]) -> None:
        self.windows: dict[int, Window] = {}
        self._readings: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._seen: dict[int, int] = defaultdict(int)
        self._processes = processes
        self._progress = progress

    def add(self, process: int, window: Window) -> None:
        merged = self.windows.setdefault(window.second, Window(second=window.second))
        merged.merge(window)
        self._readings[process].append((window.client_cpu_ns, window.length_ns))
        self._seen[window.second] += 1
        if self._seen[window.second] == self._processes and (merged.length_ns >= WHOLE_WINDOW_NS or not window.second):
            self._progress(merged)

    def client_cpu_share(self) -> float:
        """Of the busiest process, over the time that it sent."""
        shares = (
            sum(cpu) / max(1, sum(length)) for cpu, length in (zip(*r, strict=True) for r in self._readings.values())
        )
        return max(shares, default=0.0)


async def run(
    plan: Plan, *, processes: int = 1, pids: tuple[int, ...] = (), progress: Progress | None = None
) -> Result:
    """Run `plan` on `processes` client processes. `pids`: the target's, where its port does not tell.
    Raise PlanError when a client process fails."""
    target = Target(plan.target, pids)

    def on_second(window: Window) -> None:
        target.sample()
        if progress is not None:
            progress(window, target.samples)

    merge = _Merge(processes, on_second)
    target.sample()
    machine = procfs.machine_cpu()
    try:
        async with asyncio.TaskGroup() as group:
            for index, share in enumerate(split(plan, processes)):
                group.create_task(_client(index, share, merge))
    except* PlanError as errors:
        raise PlanError(str(errors.exceptions[0])) from None
    target.sample()
    windows = [merge.windows[second] for second in sorted(merge.windows)]
    return Result(
        target=plan.target,
        plan=plan,
        processes=processes,
        elapsed_s=sum(window.length_ns for window in windows) / 1e9,
        windows=windows,
        samples=target.samples,
        target_pids=target.pids,
        target_note=target.note,
        memory_kind=target.memory_kind,
        client_cpu_share=merge.client_cpu_share(),
        machine_cpu_share=_share(machine, procfs.machine_cpu()),
    )


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    everything = after[1] - before[1]
    return (after[0] - before[0]) / everything if everything else 0.0


async def _client(index: int, plan: Plan, merge: _Merge) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtests.client",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(plan))
        process.stdin.close()
        decoder = msgspec.json.Decoder(Window)
        async for line in process.stdout:
            merge.add(index, decoder.decode(line))
        if await process.wait() != 0:
            raise PlanError(f"a client process ended with status {process.returncode}")
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    if process.returncode is None:
        process.kill()
        await process.wait()
