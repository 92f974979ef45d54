"""Every metric of the gateway, in one table. Right across workers through prometheus_client's multiprocess files.

Money is counted in nano-dollars. Model names are labels only where they have a price: a caller cannot make new series.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import values as prometheus_values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.multiprocess import SharedMetrics

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)


class Tally:
    """A counter of the hot path: an addition in memory, written to its metric by `Metrics.flush`."""

    __slots__ = ("_metric", "_pending")

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._pending = 0

    def inc(self, amount: int = 1) -> None:
        self._pending += amount

    def flush(self) -> None:
        if self._pending:
            self._metric.inc(self._pending)
            self._pending = 0


class Distribution:
    """A histogram of the hot path, likewise. The library can only observe one value at a time, at a lock each."""

    __slots__ = ("_bounds", "_counts", "_metric", "_sum")

    def __init__(self, metric: Histogram, bounds: tuple[float, ...]) -> None:
        self._metric = metric
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        if not any(self._counts):
            return
        self._metric._sum.inc(self._sum)
        for bucket, count in zip(self._metric._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._counts = [0] * len(self._counts)
        self._sum = 0.0


class Metrics:
    """One instance a process. What the hot path counts reaches `/metrics` with the next `flush`."""

    def __init__(self) -> None:
        _remember_process_id()
        self._pending: list[Tally | Distribution] = []
        self._of_model: dict[tuple[str, str], ModelMetrics] = {}
        self._outcomes: dict[tuple[str, str, int, str], tuple[Tally, Tally]] = {}
        self.registry = CollectorRegistry()
        counter, gauge = self._counter, self._gauge

        # Calls
        self._requests = counter("obol_requests", "Gateway calls.", "provider", "model", "status")
        self._endings = counter("obol_endings", "How calls ended.", "ending")
        self.refusals = counter("obol_refusals", "Calls and requests refused before the provider.", "code")
        self.limits = counter("obol_limits_reached", "Limits reached, by setting.", "limit")
        self.active = gauge("obol_calls_active", "Calls under way.")
        self.connections = gauge("obol_upstream_connections", "Connections to providers.")
        self.realtime_sessions = gauge("obol_realtime_sessions", "Realtime sessions under way.")
        self.draining = gauge("obol_draining", "Gateways that end their calls and take on no new ones.")
        drained = "Requests of gateways told to stop, by how they ended."
        self.drain_requests = counter("obol_drain_requests", drained, "outcome")
        hops = "Providers that calls with fallbacks were sent to."
        self.hops = counter("obol_fallback_hops", hops, "hop", "outcome")
        translated = "Answers in another dialect than the client's."
        self.translations = counter("obol_translations", translated, "client", "provider", "outcome")
        self.cache = counter("obol_principal_cache", "Look-ups of credentials.", "result")

        # Time
        self.gateway_latency = self._distribution(
            "obol_gateway_latency_seconds",
            "Time from the request's head to its dispatch upstream: what the gateway adds before the provider.",
        )
        self.settle_latency = self._distribution(
            "obol_settle_latency_seconds", "From the last byte to the settle's acknowledgement."
        )
        self._first_byte = self._of_provider(
            "obol_provider_first_byte_seconds", "From dispatch to the head of the provider's answer."
        )
        self._provider_time = self._of_provider(
            "obol_provider_duration_seconds", "From dispatch to the end of the provider's answer."
        )

        # Usage and money
        self._tokens = counter("obol_tokens", "Tokens metered.", "provider", "model", "kind")
        money = counter("obol_money_nanodollars", "Money by kind.", "kind")
        self.cost, self.charge = self._tally(money.labels("cost")), self._tally(money.labels("charge"))
        self.estimated = counter("obol_estimated", "Calls whose usage was counted here.", "provider")
        self.unpriced = counter("obol_unpriced", "Calls with a part that has no price.", "provider")

        # The ledger, and one that lost something
        self.settles_waiting = gauge("obol_settles_waiting", "Settles not yet acknowledged by Redis.")
        self.duplicate_settles = counter("obol_settles_duplicate", "Settles that Redis had already.")
        unknown = "Settles whose hold was unknown: spending that could not be debited."
        self.lost_settles = counter("obol_settles_lost", unknown)
        self.hold_extensions = counter("obol_hold_extensions", "Larger holds for streams.", "result")
        self.holds_again = counter("obol_holds_again", "Holds of live calls that Redis had lost.")
        self.holds_lost = counter("obol_holds_lost", "Calls debited though Redis had lost their hold.")
        self.settles_kept = gauge("obol_settles_kept", "Settles kept past their acknowledgement.")
        self.settles_kept_bytes = gauge("obol_settles_kept_bytes", "Memory that they take, roughly.")
        self.settles_kept_dropped = counter("obol_settles_kept_dropped", "Kept settles dropped early.")
        self.settles_resent = counter("obol_settles_resent", "Settles sent again on a new connection.", "outcome")
        short = "Times that too few replicas had confirmed in time."
        self.replica_shortfalls = counter("obol_replica_shortfalls", short)
        lost = "Recorded journal entries that Redis was found to have lost."
        self.lost_entries = counter("obol_ledger_lost_entries", lost)

    def limit_reached(self, limit: str | None) -> None:
        """Count what `ObolError.limit` names, if it names one."""
        if limit is not None:
            self.limits.labels(limit).inc()

    def flush(self) -> None:
        """Write what was counted in memory. Twice a second, and before this process answers a scrape."""
        for pending in self._pending:
            pending.flush()

    def of_model(self, provider: str, model: str) -> ModelMetrics:
        """What is counted by provider and model. The caller sees to it that there are few of them."""
        found = self._of_model.get((provider, model))
        if found is None:
            found = self._of_model[provider, model] = ModelMetrics(
                self._tally(self._tokens.labels(provider, model, "input")),
                self._tally(self._tokens.labels(provider, model, "output")),
                self._slow(self._first_byte.labels(provider)),
                self._slow(self._provider_time.labels(provider)),
            )
        return found

    def outcome(self, provider: str, model: str, status: int, ending: str) -> None:
        """Count one call."""
        found = self._outcomes.get((provider, model, status, ending))
        if found is None:
            found = (
                self._tally(self._requests.labels(provider, model, str(status))),
                self._tally(self._endings.labels(ending)),
            )
            self._outcomes[provider, model, status, ending] = found
        found[0].inc()
        found[1].inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        """Summed over the processes that live."""
        return Gauge(name, text, multiprocess_mode="livesum", registry=self.registry)

    def _of_provider(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ("provider",), buckets=_SLOW, registry=self.registry)

    def _tally(self, metric: Counter) -> Tally:
        self._pending.append(tally := Tally(metric))
        return tally

    def _slow(self, metric: Histogram) -> Distribution:
        self._pending.append(distribution := Distribution(metric, _SLOW))
        return distribution

    def _distribution(self, name: str, text: str) -> Distribution:
        metric = Histogram(name, text, buckets=_FAST, registry=self.registry)
        self._pending.append(distribution := Distribution(metric, _FAST))
        return distribution


class ModelMetrics(NamedTuple):
    """What is counted for each provider and model."""

    input_tokens: Tally
    output_tokens: Tally
    first_byte: Distribution
    provider_time: Distribution


def _remember_process_id() -> None:
    """In multiprocess mode the library asks the kernel for the process id at each increment, to notice a fork.

    Our workers are started, not forked; the documented `process_identifier` saves those system calls.
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        process_id = os.getpid()
        identify: Callable[[], int] = lambda: process_id  # noqa: E731
        prometheus_values.ValueClass = prometheus_values.MultiProcessValue(identify)  # type: ignore[no-untyped-call]


class LedgerGauges(Collector):
    """Read from Redis when scraped: the same whichever worker answers, so they are no part of the workers' files."""

    def __init__(self) -> None:
        self.holds_open = 0
        self.journal_entries = 0
        self.journal_age_s = 0.0
        self.journal_entries_max = 0
        self.wallets_restoring = 0
        self.shards_swept = 0
        self.ledger_up = False

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("obol_ledger_up", "1 if Redis answers.", value=int(self.ledger_up))
        if self.ledger_up:
            yield GaugeMetricFamily("obol_holds_open", "Open holds.", value=self.holds_open)
            yield GaugeMetricFamily("obol_journal_entries", "Entries not yet flushed.", value=self.journal_entries)
            yield GaugeMetricFamily(
                "obol_journal_age_seconds", "Age of the oldest unflushed entry.", value=self.journal_age_s
            )
            yield GaugeMetricFamily(
                "obol_journal_entries_max", "Unflushed entries allowed.", value=self.journal_entries_max
            )
            yield GaugeMetricFamily(
                "obol_wallets_restoring", "Wallets out of use until restored.", value=self.wallets_restoring
            )
            yield GaugeMetricFamily(
                "obol_shards_swept", "Shards whose wallets are all looked at.", value=self.shards_swept
            )


def exposition(metrics: Metrics, ledger: LedgerGauges) -> bytes:
    """The text format: all workers' metrics where a multiprocess directory is set, else this process's.

    Raise TimeoutError when another process keeps that directory locked.
    """
    of_ledger = CollectorRegistry()
    of_ledger.register(ledger)
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory or not Path(directory).is_dir():
        return bytes(generate_latest(metrics.registry)) + bytes(generate_latest(of_ledger))
    registry = CollectorRegistry()
    registry.register(SharedMetrics(Path(directory)))
    return bytes(generate_latest(registry)) + bytes(generate_latest(of_ledger))
