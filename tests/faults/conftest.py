"""Fault tests share the pieces of the integration tests, a seed that replays a run, and a table at the end."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

COLUMNS = ("scenario", "in flight", "calls", "refused", "rows", "expired", "reports", "recovered in s", "took s")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="replay a run of the fault tests (default: $OBOL_FAULTS_SEED, else any)")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--seed", None) or os.environ.get("OBOL_FAULTS_SEED")
    # In the environment, so that every process of a run with several takes the same.
    os.environ["OBOL_FAULTS_SEED"] = str(given or random.SystemRandom().randrange(1, 10**6))


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: replay this run with --seed {os.environ['OBOL_FAULTS_SEED']}"


@pytest.fixture(scope="session")
def seed() -> int:
    return int(os.environ["OBOL_FAULTS_SEED"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = [dict(report.user_properties) for report in reports if getattr(report, "user_properties", None)]
    table = [[str(line.get(column, "")) for column in COLUMNS] for line in lines if "scenario" in line]
    if not table:
        return
    widths = [max(map(len, column)) for column in zip(COLUMNS, *table, strict=True)]
    terminalreporter.section(f"faults (--seed {os.environ['OBOL_FAULTS_SEED']})")
    for row in (COLUMNS, *table):
        terminalreporter.write_line("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
