"""What the tables of the code hold, the code uses: named queries, error codes, metrics."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from gateway import errors
from gateway.metrics import LedgerGauges, Metrics
from gateway.store.postgres import load_queries
from gateway.webhooks import metrics as webhook_metrics
from gateway.worker import metrics as worker_metrics

PACKAGE = Path(__file__).parents[2] / "gateway"


@cache
def written(folder: str = "**", but: str = "") -> str:
    """The source of a folder's modules, or of all."""
    paths = (path for path in PACKAGE.glob(f"{folder}/*.py") if path != PACKAGE / but)
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def literals(source: str) -> set[str]:
    return set(re.findall(r'"([\w.]+)"', source))


def put_together() -> set[str]:
    """What f"usage.{name}" may be: with each word that is written in its folder."""
    found = set()
    for folder in {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}:
        source = written(folder)
        for before, after in re.findall(r'f"(\w*\.?)\{[\w.]+\}([\w.]*)"', source):
            found |= {before + word + after for word in literals(source)}
    return found


def test_every_query_is_asked() -> None:
    assert load_queries().keys() - literals(written()) - put_together() == set()


def test_every_query_that_is_asked_is_there() -> None:
    files = "|".join({name.partition(".")[0] for name in load_queries()})
    calls = re.findall(rf'\b(?:rows?|execute|sql|fetch)\(\s*"((?:{files})\.\w+)"', written())
    assert len(calls) > 100
    assert set(calls) - load_queries().keys() == set()


def test_every_error_code_is_told() -> None:
    assert errors.KINDS.keys() - literals(written(but="errors.py")) == set()


def test_every_metric_is_counted() -> None:
    used = set(re.findall(r"\.(\w+)", written(but="metrics.py")))
    of_gateway = {name for each in (Metrics(), LedgerGauges()) for name in vars(each) if not name.startswith("_")}
    of_worker = {name for table in (worker_metrics, webhook_metrics) for name in vars(table) if name.isupper()}
    assert (of_gateway - {"registry"} | of_worker) - used == set()
