"""Loads `lua/`: each script with the includes its header names, and its SHA-1 for EVALSHA."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import MappingProxyType

import msgspec

from gateway import share
from gateway.errors import ConfigurationError

_INCLUDE = re.compile(r"^-- include: (.+)$", re.MULTILINE)


class Script(msgspec.Struct, frozen=True):
    name: str
    source: bytes
    sha1: bytes


def load(directory: Path | None = None) -> MappingProxyType[str, Script]:
    """Every script of `lua/` by name."""
    root = directory or share.directory("lua")
    return MappingProxyType({path.stem: _compose(path, root / "includes") for path in sorted(root.glob("*.lua"))})


def _compose(path: Path, includes: Path) -> Script:
    text = path.read_text(encoding="utf-8")
    named = _INCLUDE.search(text)
    parts = []
    for name in re.split(r",\s*", named[1].strip()) if named else ():
        include = includes / f"{name}.lua"
        if not include.is_file():
            raise ConfigurationError(f"{path.name} includes {name}, which {includes} does not hold")
        parts.append(include.read_text(encoding="utf-8"))
    source = "\n".join([*parts, text]).encode()
    return Script(path.stem, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())
