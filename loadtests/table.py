"""A result as text: the live line and the table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from loadtests.result import Result, TargetSample, client_verdict, corrected_latency, latency_note, rate_per_s
from loadtests.tally import Tally, Window

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def milliseconds(nanoseconds: float) -> str:
    value = nanoseconds / 1e6
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def label(target: str) -> str:
    """A target's short name: host, port and path."""
    parts = urlsplit(target)
    return parts.netloc.rpartition("@")[2] + parts.path.rstrip("/")


def progress_line(window: Window, samples: Sequence[TargetSample]) -> str:
    tally = window.all_kinds()
    rate = tally.succeeded * 1e9 / window.length_ns if window.length_ns else 0.0
    parts = [
        f"{window.second + 1:4d} s",
        f"{rate:9,.0f} req/s",
        f"p50 {milliseconds(tally.latency.percentile(50)):>9}",
        f"p99 {milliseconds(tally.latency.percentile(99)):>9}",
        f"errors {tally.failures}",
        f"in flight {window.in_flight}",
    ]
    if window.waiting:
        parts.append(f"waiting {window.waiting}")
    if len(samples) > 1:
        before, now = samples[-2:]
        share = (now.cpu_us - before.cpu_us) / 1e6 / max(now.at_s - before.at_s, 1e-3)
        parts.append(f"target CPU {share:4.0%}  {megabytes(now.memory_bytes)}")
    return "  ".join(parts)


def rows(result: Result) -> list[tuple[str, str]]:
    """The figures of one target as (name, text)."""
    total = result.total()
    everything = total.all_kinds()
    found = [
        ("requests answered", f"{everything.succeeded:,}"),
        ("rate", f"{rate_per_s(result, everything):,.1f}/s"),
        ("errors", errors_text(everything)),
    ]
    for kind in sorted(total.tallies):
        tally = total.tallies[kind]
        if tally.latency.total:
            found += _kind_rows(result, kind, tally)
    return found + _target_rows(result, everything)


def _kind_rows(result: Result, kind: str, tally: Tally) -> Iterable[tuple[str, str]]:
    latency = corrected_latency(result, tally)
    yield f"{kind}: latency p50", milliseconds(latency.percentile(50))
    for percent in PERCENTILES[1:]:
        yield f"{kind}: latency p{percent:g}", milliseconds(latency.percentile(percent))
    yield f"{kind}: latency max", milliseconds(latency.largest)
    yield f"{kind}: service p50 / p99", _pair(tally.service.percentile(50), tally.service.percentile(99))
    yield f"{kind}: first byte p50 / p99", _pair(tally.first_byte.percentile(50), tally.first_byte.percentile(99))
    if tally.chunks:
        yield f"{kind}: chunks", f"{tally.chunks:,} ({tally.chunks / max(result.elapsed_s, 1e-9):,.0f}/s)"
        yield f"{kind}: chunk gap p50 / p99", _pair(tally.chunk_gap.percentile(50), tally.chunk_gap.percentile(99))


def _pair(first_ns: int, second_ns: int) -> str:
    return f"{milliseconds(first_ns)} / {milliseconds(second_ns)}"


def errors_text(tally: Tally) -> str:
    if not tally.failed:
        return "0"
    reasons = ", ".join(f"{reason} x {count:,}" for reason, count in sorted(tally.failed.items()))
    return f"{tally.failures:,} ({reasons})"


def _target_rows(result: Result, everything: Tally) -> list[tuple[str, str]]:
    if not result.samples:
        return [("target CPU and memory", result.target_note)]
    done = everything.succeeded + everything.failures
    return [
        ("target CPU", f"{result.target_cpu_us() / max(done, 1):,.0f} us a request"),
        ("target memory peak", f"{megabytes(result.memory_peak_bytes())} ({result.memory_kind})"),
        ("target processes", str(len(result.target_pids))),
    ]


def text(results: Sequence[Result]) -> str:
    """The table of all targets side by side, then what may be concluded from it."""
    columns = [dict(rows(result)) for result in results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    header = ["", *(label(result.target) for result in results)]
    lines = [header, *([name, *(column.get(name, "-") for column in columns)] for name in names)]
    notes = [latency_note(results[0])]
    notes += [f"{label(result.target)}: {client_verdict(result)[1]}" for result in results]
    return "\n".join([aligned(lines), "", *notes])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """`lines` with their columns aligned: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
