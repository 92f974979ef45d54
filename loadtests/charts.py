"""Line charts as inline SVG: no script, no font, no network. Colours come from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 78, 34, 14, 46
TICKS = 4
DOTS_MAX = 60
"""Above this many points a line is drawn without a dot (and tooltip) on each."""


@dataclass(frozen=True)
class Line:
    """One series. `style` is the number of a CSS colour, 1 to 6."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int


@dataclass(frozen=True)
class Axis:
    """How values become positions and labels."""

    low: float
    high: float
    ticks: Sequence[float]
    show: Callable[[float], str]
    log: bool = False

    def share(self, value: float) -> float:
        """Where `value` stands on the axis, 0 to 1."""
        if self.log:
            value = max(value, self.low)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear(high: float, show: Callable[[float], str], low: float = 0.0) -> Axis:
    """From `low` to a round number at or above `high`."""
    step = _round_step(max(high - low, 1e-9) / TICKS)
    count = max(1, math.ceil((high - low) / step - 1e-9))
    return Axis(low, low + count * step, [low + step * index for index in range(count + 1)], show)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def logarithmic(low: float, high: float, show: Callable[[float], str]) -> Axis:
    """Decades around `low` > 0 and `high`; a range within one decade gets ticks at 1, 2 and 5."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(max(high, low * 1.01)))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last) for factor in factors] + [10.0**last]
    start = max((tick for tick in ticks if tick <= low), default=ticks[0])
    end = min((tick for tick in ticks if tick >= high), default=ticks[-1])
    return Axis(start, end, [tick for tick in ticks if start <= tick <= end], show, log=True)


def chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, x_name: str) -> str:
    """A figure: heading, legend and SVG."""
    drawn = "".join([*(_grid_y(y, tick) for tick in y.ticks), *(_label_x(x, tick) for tick in x.ticks)])
    drawn += "".join(_line(line, x, y) for line in lines)
    legend = "".join(f'<span class="key c{line.style}">{escape(line.name)}</span>' for line in lines)
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    name = f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{drawn}{name}</svg></figure>'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _grid_y(axis: Axis, tick: float) -> str:
    at = _y(axis, tick)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="axis" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(axis.show(tick))}</text>'
    )


def _label_x(axis: Axis, tick: float) -> str:
    at, shown = _x(axis, tick), escape(axis.show(tick))
    return f'<text class="axis" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{shown}</text>'


def _line(line: Line, x: Axis, y: Axis) -> str:
    places = [(_x(x, a), _y(y, b)) for a, b in line.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    drawn = f'<polyline class="line c{line.style}" points="{path}"/>'
    if len(places) > DOTS_MAX:
        return drawn
    for (a, b), (at, value) in zip(places, line.points, strict=True):
        tip = escape(f"{line.name}: {y.show(value)} at {x.show(at)}")
        drawn += f'<circle class="dot c{line.style}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"><title>{tip}</title></circle>'
    return drawn
