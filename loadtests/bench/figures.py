"""What the rounds add up to, held against the floors."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from loadtests.table import aligned

NGINX, BARE, OBOL = "nginx", "bare aiohttp", "Obol"


class Figures(msgspec.Struct):
    """One server. A list has one number a round; the figure is its median."""

    name: str
    request_cpu_us: list[float] = []
    request_everything_us: list[float] = []
    requests_per_s: list[float] = []
    chunk_cpu_us: list[float] = []
    chunk_everything_us: list[float] = []
    burst_cpu_us: list[float] = []
    added_p50_us: list[float] = []
    stream_memory_bytes: list[float] = []


class Floor(msgspec.Struct, frozen=True):
    """The most that a figure of Obol may be: `value`, in units of the same figure of the server `times` where named."""

    name: str
    field: str
    value: float
    times: str = ""


FLOORS = (
    Floor("CPU us a request, 32 connections", "request_cpu_us", 9.0, times=NGINX),
    Floor("added p50 us, 1 connection", "added_p50_us", 700.0),
    Floor("CPU us a chunk, 100 streams at 5 ms", "chunk_cpu_us", 35.0),
    Floor("CPU us a stream of 52 events sent at once", "burst_cpu_us", 1.6, times=BARE),
    Floor("bytes an open stream, 1,000 streams", "stream_memory_bytes", 50_000.0),
)
OTHERS = (
    ("CPU us a request, all processes", "request_everything_us"),
    ("CPU us a chunk, all processes", "chunk_everything_us"),
    ("requests/s, 32 connections", "requests_per_s"),
)
DIGITS = {
    "request_cpu_us": 1,
    "burst_cpu_us": 1,
    "chunk_cpu_us": 1,
    "request_everything_us": 1,
    "chunk_everything_us": 1,
}


class Judgement(msgspec.Struct, frozen=True):
    """A floor and what came out. `kept` is None where a part of the comparison is missing."""

    floor: str
    measured: float | None
    limit: float
    unit: str
    kept: bool | None


def figure(figures: Figures | None, field: str) -> float | None:
    values: list[float] = getattr(figures, field) if figures else []
    return median(values) if values else None


def judge(all_figures: Sequence[Figures]) -> list[Judgement]:
    by_name = {figures.name: figures for figures in all_figures}
    found = []
    for floor in FLOORS:
        measured = figure(by_name.get(OBOL), floor.field)
        if floor.times and measured is not None:
            base = figure(by_name.get(floor.times), floor.field)
            measured = measured / base if base else None
        kept = None if measured is None else measured <= floor.value
        unit = f"x {floor.times}" if floor.times else ""
        found.append(Judgement(floor.name, measured, floor.value, unit, kept))
    return found


def table(all_figures: Sequence[Figures]) -> str:
    """The servers side by side, Obol's ratio to each of the others, the floors."""
    by_name = {figures.name: figures for figures in all_figures}
    obol = by_name.get(OBOL)
    others = [figures for figures in all_figures if figures.name != OBOL] if obol else []
    header = ["", *by_name, *(f"{OBOL} / {figures.name}" for figures in others), "floor"]
    judgements = judge(all_figures)
    lines = [header]
    for floor, judgement in zip(FLOORS, judgements, strict=True):
        lines.append([*_row(floor.name, floor.field, all_figures, obol, others), _verdict(judgement)])
    lines += [[*_row(name, field, all_figures, obol, others), ""] for name, field in OTHERS]
    return aligned(lines)


def _row(
    name: str, field: str, columns: Sequence[Figures], obol: Figures | None, others: Sequence[Figures]
) -> list[str]:
    digits = DIGITS.get(field, 0)
    values = [figure(figures, field) for figures in columns]
    ratios = [_ratio(figure(obol, field), figure(figures, field)) for figures in others]
    return [name, *("-" if value is None else f"{value:,.{digits}f}" for value in values), *ratios]


def _ratio(value: float | None, base: float | None) -> str:
    return "-" if value is None or base is None or base <= 0 else f"{value / base:.2f}x"


def _verdict(judgement: Judgement) -> str:
    limit = f"<= {judgement.limit:,g} {judgement.unit}".rstrip()
    if judgement.kept is None:
        return f"{limit}: not measured"
    return f"{limit}: {'kept' if judgement.kept else 'EXCEEDED'}"
