"""A result as one HTML file that needs nothing else: table, verdict, charts over time, for one target or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from loadtests.charts import Axis, Line, chart, linear, logarithmic
from loadtests.histogram import Histogram
from loadtests.result import Result, client_verdict, corrected_latency, latency_note
from loadtests.run import WHOLE_WINDOW_NS
from loadtests.table import label, rows
from loadtests.tally import Tally, Window

TAIL_PERCENTS = (10.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)

STYLE = """
:root { --ink: #1d2433; --soft: #5b6475; --paper: #ffffff; --card: #f5f6f9; --rule: #dfe3ea;
  --c1: #1f5fbf; --c2: #c2571a; --c3: #23805a; --c4: #8a3fa8; --c5: #a8324a; --c6: #57606f; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf2; --soft: #a3acbd; --paper: #12161f; --card: #1b212d;
  --rule: #313a4a; --c1: #7fb0ff; --c2: #f2a06a; --c3: #6fd3a5; --c4: #d49bef; --c5: #f48fa3; --c6: #b4bccb;
  --warn: #f2c078; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 24px 16px 48px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 8px; }
p { margin: 4px 0; } .soft { color: var(--soft); } .warn { color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; border-top: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
tr:first-child th { border-top: 0; background: var(--card); }
th:first-child { text-align: left; font-weight: 500; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 12px; background: var(--card); border-radius: 8px; }
figcaption { font-weight: 600; } svg { display: block; width: 100%; height: auto; }
.legend { font-size: 13px; color: var(--soft); min-height: 20px; }
.key { margin-right: 14px; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle;
  background: var(--c); }
.axis { font-size: 12px; fill: var(--soft); } .grid { stroke: var(--rule); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; } .dot { fill: var(--c); }
.c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .c6 { --c: var(--c6); }
@media (max-width: 600px) { .axis { font-size: 17px; } th, td { padding: 6px 8px; font-size: 14px; } }
"""


def html(results: Sequence[Result], title: str, when: str) -> str:
    """The whole page. `when` is shown as it stands."""
    verdicts = "".join(_verdict(result) for result in results)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(when)}. {escape(_asked(results[0]))}</p>'
        f"<p>{escape(latency_note(results[0]))}</p>{verdicts}"
        f'<h2>Figures</h2><div class="scroll">{_table(results)}</div>'
        f'<h2>Over time</h2><div class="charts">{_time_charts(results)}</div>'
        f'<h2>Distribution</h2><div class="charts">{_distribution_charts(results)}</div></body></html>'
    )


def _asked(result: Result) -> str:
    plan = result.plan
    pace = f"{plan.rate_per_s:,g} requests/s over at most {plan.users}" if result.open_loop else f"{plan.users}"
    return (
        f"Scenario {plan.scenario}, {pace} connections, {plan.duration_s:g} s, {result.processes} client process(es)."
    )


def _verdict(result: Result) -> str:
    limited, sentence = client_verdict(result)
    return f'<p class="{"warn" if limited else "soft"}">{escape(label(result.target))}: {escape(sentence)}</p>'


def _table(results: Sequence[Result]) -> str:
    columns = [dict(rows(result)) for result in results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head = "".join(f"<th>{escape(label(result.target))}</th>" for result in results)
    lines = "".join(f"<tr><th>{escape(name)}</th>{_cells(name, columns)}</tr>" for name in names)
    return f"<table><tr><th></th>{head}</tr>{lines}</table>"


def _cells(name: str, columns: Sequence[dict[str, str]]) -> str:
    return "".join(f"<td>{escape(column.get(name, '-'))}</td>" for column in columns)


def _windows(result: Result) -> list[Window]:
    long_enough = [window for window in result.windows if window.length_ns >= WHOLE_WINDOW_NS]
    return long_enough or result.windows


def _time_charts(results: Sequence[Result]) -> str:
    seconds = linear(max(len(_windows(result)) for result in results), lambda value: f"{value:g} s")
    drawn = [_rate_chart(results, seconds)]
    for percent in (50.0, 99.0):
        drawn.append(_latency_chart(results, seconds, percent))
    return "".join(drawn) + _target_charts(results)


def _rate_chart(results: Sequence[Result], seconds: Axis) -> str:
    def rate(tally: Tally, window: Window) -> float:
        return tally.succeeded * 1e9 / max(window.length_ns, 1)

    lines = [_over_time(result, style, rate) for style, result in enumerate(results, 1)]
    return chart("Answered requests a second", lines, seconds, linear(_highest(lines), _count), "time")


def _latency_chart(results: Sequence[Result], seconds: Axis, percent: float) -> str:
    def latency(tally: Tally, _: Window) -> float:
        return tally.latency.percentile(percent) / 1e6

    lines = [_over_time(result, style, latency) for style, result in enumerate(results, 1)]
    meaning = "latency" if results[0].open_loop else "raw service time"
    return chart(f"p{percent:g} {meaning}", lines, seconds, linear(_highest(lines), _milliseconds), "time")


def _over_time(result: Result, style: int, value: Callable[[Tally, Window], float]) -> Line:
    points = [(window.second + 1.0, value(window.all_kinds(), window)) for window in _windows(result)]
    return Line(label(result.target), points, _style(style))


def _style(number: int) -> int:
    return (number - 1) % 6 + 1


def _target_charts(results: Sequence[Result]) -> str:
    lines = [
        Line(
            label(result.target), [(sample.at_s, sample.memory_bytes / 1e6) for sample in result.samples], _style(style)
        )
        for style, result in enumerate(results, 1)
        if result.samples
    ]
    if not lines:
        return ""
    ends = linear(max(line.points[-1][0] for line in lines), lambda value: f"{value:.3g} s")
    return chart("Memory of the target", lines, ends, linear(_highest(lines), lambda value: f"{value:.4g} MB"), "time")


def _distribution_charts(results: Sequence[Result]) -> str:
    latency = [corrected_latency(result, result.total().all_kinds()) for result in results]
    drawn = _distribution("Latency by percentile", results, latency)
    gaps = [result.total().all_kinds().chunk_gap for result in results]
    if any(gap.total for gap in gaps):
        drawn += _distribution("Gap between chunks by percentile", results, gaps)
    first = [result.total().all_kinds().first_byte for result in results]
    return drawn + _distribution("Time to first byte by percentile", results, first)


def _distribution(title: str, results: Sequence[Result], histograms: Sequence[Histogram]) -> str:
    """x: one in 1 / (1 - p), logarithmic, so that the tail is as wide as the body."""
    lines = [
        Line(label(result.target), _tail(histogram), _style(style))
        for style, (result, histogram) in enumerate(zip(results, histograms, strict=True), 1)
        if histogram.total
    ]
    if not lines:
        return ""
    values = [value for line in lines for _, value in line.points]
    x = Axis(
        1 / 0.9, 10_000.0, [2.0, 10.0, 100.0, 1_000.0, 10_000.0], lambda one_in: f"{100 - 100 / one_in:.5g} %", log=True
    )
    return chart(title, lines, x, logarithmic(max(min(values), 1e-3), max(values), _milliseconds), "percentile")


def _tail(histogram: Histogram) -> list[tuple[float, float]]:
    """Only the percentiles that the number of values can tell."""
    known = [percent for percent in TAIL_PERCENTS if histogram.total * (100 - percent) >= 100] or [50.0]
    return [(100 / (100 - percent), max(histogram.percentile(percent) / 1e6, 1e-3)) for percent in known]


def _highest(lines: Sequence[Line]) -> float:
    return max((value for line in lines for _, value in line.points), default=0.0) or 1.0


def _count(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:,g}"


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
