"""What `pip install obol-sdk` brings."""

from __future__ import annotations

import ast
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

SDK = Path(__file__).parents[3] / "sdk"
SOURCES = sorted((SDK / "src" / "obol_sdk").rglob("*.py"))
NEEDED = {"httpx2", "msgspec"}


def imported(path: Path) -> set[str]:
    """The packages that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_it_needs_nothing_of_the_server() -> None:
    assert len(SOURCES) > 15
    used = set().union(*(imported(path) for path in SOURCES))
    assert used - sys.stdlib_module_names == NEEDED | {"obol_sdk"}


def test_the_wheel_is_typed_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SDK)
    (built,) = WheelBuilder(str(SDK)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        names = wheel.namelist()
        metadata = message_from_bytes(wheel.read(next(name for name in names if name.endswith("METADATA"))))
    assert {str(path.relative_to(SDK / "src")) for path in SOURCES} | {"obol_sdk/py.typed"} <= set(names)
    assert {text.partition("<")[0].partition(">")[0] for text in metadata.get_all("Requires-Dist", [])} == NEEDED
    assert "From a meter to a bill" in str(metadata.get_payload())
