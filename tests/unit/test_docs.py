"""The documents are true: settings, metrics, errors, commands, scripts, links and locks are what the code has."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from gateway import errors
from gateway.__main__ import parser
from gateway.metrics import LedgerGauges, Metrics
from gateway.settings import Settings, load
from gateway.webhooks import metrics as webhook_metrics
from gateway.worker import metrics as worker_metrics

ROOT = Path(__file__).parents[2]
NOT_OURS = {".venv", ".git", ".obol", ".hypothesis", ".pytest_cache", "node_modules", "build", "dist", "reports"}
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not NOT_OURS & set(path.relative_to(ROOT).parts) and path.is_file()
)
UNITS = {"ms": "milliseconds", "s": "seconds", "bytes": "bytes", "nano": "nano-dollars"}


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(name: str) -> Iterator[list[str]]:
    """The cells of every table row of a document whose first cell is one word of code, backticks taken off it."""
    for line in text_of(name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and re.fullmatch(r"`[^` ]+`", cells[0]):
            yield [cells[0].strip("`"), *cells[1:]]


# Settings


def documented_settings() -> dict[str, list[str]]:
    return {cells[0]: cells[1:] for cells in rows("docs/settings.md")}


def unit_of(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return "number" if "_per_" in name else UNITS.get(name.rpartition("_")[2], "number")
    if isinstance(default, tuple) and default and all(isinstance(each, int) for each in default):
        return f"list of {unit_of(name, default[0])}"
    return {dict: "table of text", tuple: "list of text"}.get(type(default), "text")


def shown(default: Any) -> str:
    return "`" + json.dumps(default) + "`"


def test_every_setting_is_documented_with_its_unit_and_default():
    defaults = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    told = {name: (cells[0], cells[1]) for name, cells in documented_settings().items()}
    assert told == {name: (unit_of(name, default), shown(default)) for name, default in defaults.items()}
    assert len(told) == sum(1 for _ in rows("docs/settings.md")), "a setting is documented twice"


def test_what_no_code_reads_is_said_to_have_no_effect():
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "gateway").rglob("*.py") if path.name != "settings.py"
    )
    read = {name for found in re.findall(r'settings\.(\w+)|"(\w+)"|\b(\w+)=', code) for name in found}
    unread = set(Settings.__struct_fields__) - read
    section = text_of("docs/settings.md").partition("## Not read by this version")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` ", section, re.M)) == unread


def test_the_shipped_file_says_the_defaults():
    assert load({}) == Settings()


# Metrics


def registered_metrics() -> dict[str, tuple[str, str]]:
    """Type and labels of every metric, by the name that Prometheus sees."""
    ledger = LedgerGauges()
    ledger.ledger_up = True
    of_worker = [*vars(worker_metrics).values(), *vars(webhook_metrics).values()]
    counted = [*Metrics().registry._collector_to_names, *of_worker]
    families = [
        (metric.describe()[0], ", ".join(metric._labelnames))
        for metric in counted
        if isinstance(metric, MetricWrapperBase)
    ]
    families += [(family, "") for family in ledger.collect()]
    return {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, labels)
        for family, labels in families
    }


def documented_metrics() -> dict[str, list[str]]:
    return {cells[0]: cells[1:] for cells in rows("docs/operations.md") if cells[0].startswith("obol_")}


def test_every_metric_is_documented_with_its_type_and_labels():
    told = {name: (cells[0], cells[1]) for name, cells in documented_metrics().items()}
    assert told == registered_metrics()


@pytest.mark.parametrize("name", ["config/prometheus/alerts.yml", "config/grafana/obol.json"])
def test_alerts_and_dashboard_ask_for_metrics_that_exist(name):
    asked = set(re.findall(r"\bobol_\w+", text_of(name)))
    known = registered_metrics().keys()
    unknown = {name for name in asked if re.sub(r"_(bucket|sum|count)$", "", name) not in known and name not in known}
    assert asked
    assert unknown == set()


def test_every_alert_is_documented():
    alerts = re.findall(r"alert: (\w+)", text_of("config/prometheus/alerts.yml"))
    assert alerts
    assert re.findall(r"^\| (Obol\w+) \|", text_of("docs/operations.md"), re.M) == alerts


def test_the_dashboard_is_json_with_panels():
    dashboard = json.loads(text_of("config/grafana/obol.json"))
    assert all(panel["targets"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 0


# Errors


def test_every_error_is_documented_with_its_status():
    told = {cells[0]: cells[1] for cells in rows("docs/errors.md")}
    assert told == {code: str(kind.status) for code, kind in errors.KINDS.items()}


def test_every_code_that_is_raised_is_in_the_table():
    raised = {
        code
        for path in (ROOT / "gateway").rglob("*.py")
        for code in re.findall(r'ObolError\(\s*"(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert len(raised) > 10
    assert raised <= errors.KINDS.keys()


# Commands


def commands() -> set[str]:
    actions = [action for action in parser()._actions if action.choices]
    return set(actions[0].choices or ())


def code_of(document: Path) -> str:
    """The fenced blocks and inline code of a document."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?^```", text, re.M | re.S)
    inline = re.findall(r"`[^`\n]+`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return "\n".join([*blocks, *inline])


def test_every_command_is_described_and_every_described_one_exists():
    told = {name for path in DOCUMENTS for name in re.findall(r"(?<![\w/-])obol ([a-z][a-z-]*)", code_of(path))}
    assert told == commands()
    assert commands() <= set(re.findall(r"(?<![\w/-])obol ([a-z-]+)", text_of("docs/operations.md")))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9]+):", text_of("Makefile"), re.M))


def test_every_make_command_in_a_document_is_a_target():
    told = {name for path in DOCUMENTS for name in re.findall(r"\bmake ([a-z0-9]+)\b", code_of(path))}
    assert {"run", "test", "check"} <= told <= make_targets()


def test_the_help_names_the_targets():
    ran = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    told = set(re.findall(r"^make (\w+)", ran.stdout, re.M))
    assert told == make_targets() - {"lint"}


def test_continuous_integration_runs_the_targets():
    named = re.search(r"for target in ([a-z0-9 ]+);", text_of(".ci/run"))
    assert named is not None
    assert named[1].split() == ["check", "test", "e2e", "faults"]
    assert set(named[1].split()) <= make_targets()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


# Scripts


def first_words(script: Path) -> set[str]:
    """The first word of every return that the header documents."""
    header = script.read_text(encoding="utf-8").partition("\n\n")[0]
    return set(re.findall(r"\{'(\w+)'", header))


def test_every_script_is_in_the_table_with_its_returns():
    told = {cells[0]: set(re.findall(r"`(\w+)`", cells[-1])) for cells in rows("lua/README.md") if len(cells) == 3}
    scripts = {path.stem: first_words(path) for path in (ROOT / "lua").glob("*.lua")}
    assert {name: words for name, words in told.items() if name in scripts} == scripts
    includes = {path.stem for path in (ROOT / "lua" / "includes").glob("*.lua")}
    assert {cells[0] for cells in rows("lua/README.md") if len(cells) == 2} == includes


# Links


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_resolve(document):
    broken = []
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md", "lua/README.md", "docs/api.md"])
def test_paths_named_in_the_documents_exist(name):
    named = set(re.findall(r"`((?:gateway|lua|config|tests|docs|loadtests)/[\w./-]+)`", text_of(name)))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


# Locks


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+(?:\[[\w,]+\])?)==([^\s;\\]+)", text_of(name), re.M))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-e2e.txt"])
def test_locks_hold_hashes_and_no_address(name):
    requirements = re.split(r"\n(?=[^\s#])", text_of(name))
    assert all("--hash=sha256:" in requirement for requirement in requirements if "==" in requirement)
    assert len(pins(name)) > 10
    assert re.findall(r"://|--(?:extra-)?index|--find-links|\b\w+\.(?:org|com|io|dev|net)\b/", text_of(name)) == []


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-e2e.txt"])
def test_what_runs_is_what_was_tested(name):
    tested = pins(name)
    assert {name: version for name, version in pins("requirements.txt").items() if tested.get(name) != version} == {}


def test_the_lock_of_the_javascript_clients_holds_hashes_and_no_registry():
    lock = json.loads(text_of("tests/e2e/javascript/package-lock.json"))
    packages = {name: package for name, package in lock["packages"].items() if name}
    asked = json.loads(text_of("tests/e2e/javascript/package.json"))["dependencies"]
    assert {f"node_modules/{name}" for name in asked} <= packages.keys()
    assert [name for name, one in packages.items() if "resolved" in one or "sha512-" not in one["integrity"]] == []


@pytest.mark.parametrize(
    ("name", "group"), [("requirements.txt", None), ("requirements-dev.txt", "dev"), ("requirements-e2e.txt", "e2e")]
)
def test_the_locks_cover_the_project(name, group):
    project = tomllib.loads(text_of("pyproject.toml"))
    asked = project["project"]["dependencies"] + (project["dependency-groups"][group] if group else [])
    wanted = {re.split(r"[\[<>=;]", one)[0].lower() for one in asked}
    locked = {pin.partition("[")[0].lower().replace("_", "-") for pin in pins(name)}
    assert len(wanted) > 10
    assert wanted - locked == set()
