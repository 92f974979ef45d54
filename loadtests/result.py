"""What a run found, and what may be concluded from it."""

from __future__ import annotations

import msgspec

from loadtests.histogram import Histogram
from loadtests.plan import Plan
from loadtests.tally import Tally, Window

NS_PER_S = 1_000_000_000
CLIENT_CPU_SHARE_MAX = 0.85
SEND_LAG_P99_MAX_NS = 1_000_000
MACHINE_CPU_SHARE_MAX = 0.95


class TargetSample(msgspec.Struct, frozen=True):
    """A reading of a local target during the run."""

    at_s: float
    cpu_us: int
    memory_bytes: int


class Result(msgspec.Struct, kw_only=True):
    """One target under one scenario."""

    target: str
    plan: Plan
    """As asked for, all processes together."""
    processes: int
    elapsed_s: float
    windows: list[Window] = []
    """One a second, the processes merged."""
    samples: list[TargetSample] = []
    target_pids: tuple[int, ...] = ()
    target_note: str = ""
    """Why there is no CPU and memory of the target, where there is none."""
    memory_kind: str = "PSS"
    client_cpu_share: float = 0.0
    """Of one core, the busiest client process, 0 to 1."""
    machine_cpu_share: float = 0.0
    """Of all cores, everything that ran, 0 to 1."""

    @property
    def open_loop(self) -> bool:
        return self.plan.rate_per_s > 0

    def total(self) -> Window:
        result = Window()
        for window in self.windows:
            result.merge(window)
        return result

    def target_cpu_us(self) -> int:
        return self.samples[-1].cpu_us - self.samples[0].cpu_us if len(self.samples) > 1 else 0

    def memory_peak_bytes(self) -> int:
        return max((sample.memory_bytes for sample in self.samples), default=0)


def rate_per_s(result: Result, tally: Tally) -> float:
    return tally.succeeded / result.elapsed_s if result.elapsed_s else 0.0


def corrected_latency(result: Result, tally: Tally) -> Histogram:
    """Open loop: as measured, which needs no correction. Closed loop: corrected from the measured mean rate: each of
    the users would have asked every users / rate."""
    answered = tally.latency.total
    if result.open_loop or not answered:
        return tally.latency
    return tally.latency.corrected(round(result.plan.users * result.elapsed_s * NS_PER_S / answered))


def latency_note(result: Result) -> str:
    """Which of the two loops it was and what its latency therefore means."""
    if result.open_loop:
        return (
            f"Open loop at {result.plan.rate_per_s:,g} requests/s: latency counts from the intended send time, "
            "so waiting for a stalled target is in it (no coordinated omission)."
        )
    return (
        f"Closed loop of {result.plan.users} users: 'service' is the raw time from send to last byte; 'latency' is "
        "corrected for coordinated omission from the measured mean rate. Give --rate to measure it directly."
    )


def client_verdict(result: Result) -> tuple[bool, str]:
    """Whether the client or the machine limited the result, and the sentence that says so."""
    lag = result.total().send_lag
    reasons = []
    if result.client_cpu_share > CLIENT_CPU_SHARE_MAX:
        reasons.append(
            f"the load client used {result.client_cpu_share:.0%} of its core (the target may be faster: "
            "give --processes, or use wrk for the raw rate)"
        )
    if lag.percentile(99) > SEND_LAG_P99_MAX_NS:
        reasons.append(f"the client sent late by {lag.percentile(99) / 1e6:.1f} ms at p99, which is in the latencies")
    if result.machine_cpu_share > MACHINE_CPU_SHARE_MAX:
        reasons.append(
            f"all cores were {result.machine_cpu_share:.0%} busy: target and client took CPU from each other"
        )
    if reasons:
        return True, "Limited by the test itself: " + "; ".join(reasons) + "."
    lag_text = f", sends late by {lag.percentile(99) / 1e6:.2f} ms at p99" if lag.total else ""
    return False, (f"The client was not the bottleneck: {result.client_cpu_share:.0%} of a core{lag_text}.")
