"""Where the files that are not Python lie: `lua/` and `config/`, in a checkout or in the installed package."""

from __future__ import annotations

from pathlib import Path

from gateway.errors import ConfigurationError


def directory(name: str) -> Path:
    """The directory `name` ("lua" or "config"): beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    for candidate in (package / "_share" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise ConfigurationError(f"the directory {name!r} is missing from this installation")
