from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtests.charts import linear, logarithmic
from loadtests.cli import main
from loadtests.histogram import Histogram
from loadtests.plan import Plan
from loadtests.report import html
from loadtests.result import Result, TargetSample, client_verdict
from loadtests.table import progress_line, text
from loadtests.tally import Window


def result(target: str = "http://127.0.0.1:1/v1/", rate_per_s: float = 0.0, seconds: int = 3) -> Result:
    windows = []
    for second in range(seconds):
        window = Window(second=second, length_ns=10**9, in_flight=2)
        for value in (1_000_000, 2_000_000, 50_000_000):
            tally = window.tally("chat")
            tally.succeeded += 1
            for histogram in (tally.latency, tally.service, tally.first_byte):
                histogram.record(value)
        windows.append(window)
    plan = Plan(target=target, users=2, rate_per_s=rate_per_s, duration_s=seconds, key="canary")
    samples = [TargetSample(0.0, 1_000_000, 50_000_000), TargetSample(float(seconds), 1_900_000, 60_000_000)]
    return Result(target=target, plan=plan, processes=1, elapsed_s=seconds, windows=windows, samples=samples)


class Page(HTMLParser):
    """Whether what is opened is closed, and what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_loads_nothing_and_has_a_column_a_target() -> None:
    page = html([result(), result("http://127.0.0.1:2/<script>")], "Load <test>", "today")
    parsed = Page()
    parsed.feed(page)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert "url(" not in page and "canary" not in page
    assert "Load &lt;test&gt;" in page
    assert parsed.tags.count("svg") >= 5
    for svg in re.findall(r"<svg.*?</svg>", page):
        ElementTree.fromstring(svg)
    assert page.count("127.0.0.1:2/&lt;script&gt;</th>") == 1


@pytest.mark.parametrize("rate_per_s", [0.0, 100.0])
def test_the_table_says_which_loop_it_was_and_what_a_request_costs(rate_per_s: float) -> None:
    shown = text([result(rate_per_s=rate_per_s)])
    assert ("Open loop at 100 requests/s" in shown) == (rate_per_s > 0)
    assert ("Closed loop of 2 users" in shown) == (rate_per_s == 0)
    assert re.search(r"requests answered +9\n", shown)
    assert "100,000 us a request" in shown
    assert "60.0 MB (PSS)" in shown


def test_the_client_says_when_it_was_the_bottleneck() -> None:
    fine = result(rate_per_s=100.0)
    assert client_verdict(fine)[0] is False
    fine.client_cpu_share = 0.9
    assert client_verdict(fine) == (True, client_verdict(fine)[1]) and "90% of its core" in client_verdict(fine)[1]
    late = result(rate_per_s=100.0)
    late.windows[0].send_lag = Histogram()
    late.windows[0].send_lag.record(5_000_000)
    assert "sent late by 5.0 ms" in client_verdict(late)[1]


def test_an_empty_result_is_reported_without_dividing_by_zero() -> None:
    empty = Result(target="http://127.0.0.1:1", plan=Plan(target="http://127.0.0.1:1"), processes=1, elapsed_s=0.0)
    empty.windows = [Window()]
    assert "requests answered" in text([empty])
    assert "</html>" in html([empty], "t", "w")
    assert "0 req/s" in progress_line(Window(), [])


@pytest.mark.parametrize("high", [0.3, 1, 7, 999, 123_456])
def test_axes_reach_their_highest_value(high: float) -> None:
    axis = linear(high, str)
    assert axis.high >= high and axis.share(high) <= 1 and len(axis.ticks) <= 6
    steps = logarithmic(0.2, high, str)
    assert steps.low <= 0.2 and steps.high >= high and steps.share(steps.high) == pytest.approx(1)


def test_the_whole_tool_runs_against_its_own_provider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, numbers = tmp_path / "r.html", tmp_path / "r.json"
    arguments = ["--with-provider", "--users", "4", "--duration-s", "0.5", "--warm-up-s", "0", "--key", "canary"]
    assert main([*arguments, "--rate", "100", "--report", str(report), "--json", str(numbers)]) == 0
    shown = capsys.readouterr().out
    content = json.loads(numbers.read_text())
    assert content["summary"][0]["requests answered"] == "50"
    assert re.search(r"target processes +1\n", shown), "the provider was found by its port"
    assert "canary" not in numbers.read_text() + report.read_text() + shown
