"""The shape of the source, read with `ast`: who imports whom, and what no module may hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gateway"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each unit (a package of gateway/, or a module beside them) may import; gateway/__init__.py tells why.
# Leaves first; the command line and what stands beside `app` last.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "background": set(),
    "failpoints": {"errors"},
    "multiprocess": set(),
    "metrics": {"multiprocess"},
    "share": {"errors"},
    "sockets": {"errors"},
    "log": {"errors"},
    "settings": {"errors", "share"},
    "core": {"errors"},
    "wire": {"core", "errors"},
    "counting": {"core", "errors", "share"},
    "prices": {"core", "errors", "share"},
    "providers": {"core", "errors", "share", "wire"},
    "ledger": {"core", "errors", "share", "wire"},
    "store": {"core", "errors", "settings", "wire"},
    "cards": {"core", "errors", "settings", "store"},
    "phones": {"errors", "settings", "store"},
}
_BELOW_BILLING = {"cards", "core", "counting", "errors", "ledger", "phones", "prices", "providers", "settings", "store"}
_BELOW_BILLING |= {"wire"}
_LEAVES = {"background", "errors", "failpoints", "log", "metrics", "multiprocess", "settings", "share", "sockets"}
MAY_IMPORT["billing"] = _BELOW_BILLING
_UNDER_APP = _BELOW_BILLING | _LEAVES | {"billing"}
MAY_IMPORT |= {
    "proxy": _UNDER_APP - {"store"},
    "api": _UNDER_APP,
    "webhooks": _UNDER_APP | {"api", "proxy"},
    "worker": _UNDER_APP | {"webhooks"},
    "pages": _UNDER_APP | {"api"},
    "local": _UNDER_APP,
    "testing": {"local"},
    "observe": _UNDER_APP | {"proxy"},
    "checks": _UNDER_APP,
    "audit": _UNDER_APP | {"api", "proxy"},
    "price_list": _UNDER_APP,
    "drain": _UNDER_APP | {"proxy"},
    "rebuild": _UNDER_APP,
    "clock": _UNDER_APP,
    "app": _UNDER_APP | {"api", "drain", "observe", "pages", "proxy", "webhooks"},
    "__main__": _UNDER_APP | {"app", "audit", "checks", "clock", "local", "price_list", "rebuild", "worker"},
}

PURE = ("core", "wire")
IMPURE_LIBRARIES = {"aiohttp", "asyncio", "asyncpg", "hiredis", "redis", "socket", "uvloop"}
DRAWERS = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
_MUTABLE_CALLS = {"Counter", "OrderedDict", "bytearray", "defaultdict", "deque", "dict", "list", "set"}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Every imported module by full name, lazily inside functions and for type checking too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "gateway" else (module,)


def ours(path: Path) -> set[str]:
    """The units that `path` imports, other than its own."""
    names = {name for name in imports_of(path) if name == "gateway" or name.startswith("gateway.")}
    units = {name.split(".")[1] if "." in name else "__init__" for name in names}
    return units - {unit_of(path), "__version__"}


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_unit_has_a_place_in_the_rule():
    assert {unit_of(path) for path in MODULES} - MAY_IMPORT.keys() == set()


def test_imports_point_down():
    wrong = {shown(path): above for path in MODULES if (above := ours(path) - MAY_IMPORT[unit_of(path)])}
    assert wrong == {}


def test_the_rule_itself_has_no_cycle():
    left = {unit: set(below) for unit, below in MAY_IMPORT.items()}
    while left:
        free = {unit for unit, below in left.items() if not below & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {unit: below for unit, below in left.items() if unit not in free}


def test_the_map_in_the_package_names_every_package():
    described = ast.get_docstring(tree_of(PACKAGE / "__init__.py")) or ""
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert [name for name in packages if not re.search(rf"^    {name}\b|, {name}\b", described, re.M)] == []


def test_core_and_wire_are_pure():
    pure = [path for path in MODULES if unit_of(path) in PURE]
    assert len(pure) > len(PURE)
    used = {shown(path): {name.split(".")[0] for name in imports_of(path)} & IMPURE_LIBRARIES for path in pure}
    assert {path: libraries for path, libraries in used.items() if libraries} == {}


def test_no_module_is_a_drawer():
    assert [shown(path) for path in MODULES if path.stem in DRAWERS] == []


def test_nothing_is_left_to_do():
    unfinished = re.compile(r"#.*\b(?:TODO|FIXME|XXX|HACK)\b")
    assert [shown(path) for path in MODULES if unfinished.search(path.read_text(encoding="utf-8"))] == []


def test_no_star_imports_and_no_globals():
    found = [
        f"{shown(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Global)
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names))
    ]
    assert found == []


def is_mutable(value: ast.expr | None) -> bool:
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in _MUTABLE_CALLS
    return isinstance(value, displays)


def mutable_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node.lineno) for target in targets if isinstance(target, ast.Name))


_MUTATORS = {"add", "append", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}


def mutated_names(tree: ast.Module) -> set[str]:
    """Names on which something is stored, deleted or called that changes them."""
    found: set[str] = set()
    for node in ast.walk(tree):
        target: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATORS:
            target = node.func.value
        elif isinstance(node, ast.AugAssign):
            target = node.target
        if isinstance(target, ast.Name):
            found.add(target.id)
    return found


def wrong_state(path: Path) -> Iterator[str]:
    tree = tree_of(path)
    changed = mutated_names(tree)
    for name, line in mutable_names(tree):
        if name in changed or not re.fullmatch(r"_?[A-Z][A-Za-z0-9_]*|__all__", name):
            yield f"{shown(path)}:{line} {name}"


def test_no_module_level_state():
    """A container at module level is a constant: named like one, and never changed."""
    assert [wrong for path in MODULES for wrong in wrong_state(path)] == []


@pytest.mark.parametrize(
    ("source", "names"),
    [("cache = {}", ["cache"]), ("A, b = 1, 2", []), ("x: list[int] = []", ["x"]), ("y = dict(a=1)", ["y"])],
)
def test_state_is_recognised(source, names):
    assert [name for name, _ in mutable_names(ast.parse(source))] == names


def test_changes_are_recognised():
    assert mutated_names(ast.parse("A[1] = 2\nB.append(3)\nC += [4]\ndel D[5]\nprint(E[6])")) == {"A", "B", "C", "D"}
