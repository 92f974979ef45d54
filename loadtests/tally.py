"""What a client process counts: one `Window` a second, mergeable across processes and seconds."""

from __future__ import annotations

import msgspec

from loadtests.histogram import Histogram


class Tally(msgspec.Struct):
    """The exchanges of one kind (chat, stream, reports). Histograms in nanoseconds."""

    succeeded: int = 0
    failed: dict[str, int] = {}
    """By reason: `status 402`, `timeout`, `connect`, `cut short`, ..."""
    response_bytes: int = 0
    chunks: int = 0
    latency: Histogram = msgspec.field(default_factory=Histogram)
    """Open loop: from the intended send time. Closed loop: from the actual one, which is the raw service time.
    Exchanges that got no answer are in it with the time they were waited for."""
    service: Histogram = msgspec.field(default_factory=Histogram)
    """From the actual send time to the last byte, of the exchanges that succeeded."""
    first_byte: Histogram = msgspec.field(default_factory=Histogram)
    """From the start that `latency` uses to the first byte of the response's body."""
    chunk_gap: Histogram = msgspec.field(default_factory=Histogram)
    """Between two arrivals of bytes of one stream."""

    def fail(self, reason: str) -> None:
        self.failed[reason] = self.failed.get(reason, 0) + 1

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    def merge(self, other: Tally) -> None:
        self.succeeded += other.succeeded
        self.response_bytes += other.response_bytes
        self.chunks += other.chunks
        for reason, count in other.failed.items():
            self.failed[reason] = self.failed.get(reason, 0) + count
        self.latency.merge(other.latency)
        self.service.merge(other.service)
        self.first_byte.merge(other.first_byte)
        self.chunk_gap.merge(other.chunk_gap)


class Window(msgspec.Struct):
    """One second of one client process (or, merged, of all of them)."""

    second: int = 0
    tallies: dict[str, Tally] = {}
    send_lag: Histogram = msgspec.field(default_factory=Histogram)
    """How late this client itself was: from the intended to the actual send, where a connection stood idle."""
    in_flight: int = 0
    waiting: int = 0
    """Open loop: requests that are due and found every connection busy."""
    client_cpu_ns: int = 0
    length_ns: int = 0
    """How long this window really was; the last one of a run is shorter than a second."""

    def tally(self, kind: str) -> Tally:
        found = self.tallies.get(kind)
        if found is None:
            found = self.tallies[kind] = Tally()
        return found

    def merge(self, other: Window) -> None:
        for kind, tally in other.tallies.items():
            self.tally(kind).merge(tally)
        self.send_lag.merge(other.send_lag)
        self.in_flight += other.in_flight
        self.waiting += other.waiting
        self.client_cpu_ns += other.client_cpu_ns
        self.length_ns = max(self.length_ns, other.length_ns)

    def all_kinds(self) -> Tally:
        """The tallies of all kinds in one."""
        result = Tally()
        for tally in self.tallies.values():
            result.merge(tally)
        return result
