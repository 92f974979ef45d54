"""A Node.js process that makes calls with the published versions of @lavapayments/nodejs: javascript/lava.mjs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

VERSIONS = ("2.5.0", "8.0.0", "8.1.0", "9.0.0", "10.1.0", "11.1.0", "11.2.0")
_ERROR = re.compile(r"Lava API Error: (\d+) [^{]* - (\{.*\})", re.S)


class Answer(NamedTuple):
    """`broken`: where the value is not what the version's types promise. `error`: what the SDK threw instead."""

    value: Any
    broken: list[str]
    error: str | None

    def refusal(self) -> tuple[int, dict[str, Any]]:
        """Status and error object of what the server refused."""
        match = _ERROR.fullmatch(self.error or "")
        assert match, self
        return int(match[1]), json.loads(match[2])


class LavaDriver:
    """Calls of a merchant who has this key, unless a call brings its own.

    What an SDK wants a browser to open is written to `browser_address`.
    """

    def __init__(self, process: subprocess.Popen[str], base_url: str, key: str, browser_address: Path) -> None:
        self._process, self.base_url, self.key, self.browser_address = process, base_url, key, browser_address

    def methods(self, version: str) -> set[str]:
        return set(self._ask(version=version, methods=True)["methods"])

    def call(self, version: str, method: str, *args: Any, key: str | None = None) -> Answer:
        told = self._ask(version=version, key=key or self.key, baseUrl=self.base_url, call=method, args=args)
        return Answer(told.get("value"), told.get("broken", []), told.get("error"))

    def read(self, version: str, name: str) -> Any:
        return self._ask(version=version, key=self.key, baseUrl=self.base_url, read=name)["value"]

    def broken(self, version: str, method: str, value: Any) -> list[str]:
        """Where a value is not what a method's type promises."""
        return list(self._ask(version=version, check=method, value=value)["broken"])

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        line = self._process.stdout.readline()
        assert line, "the driver ended"
        return dict(json.loads(line))


@contextmanager
def lava_driver(
    program: str, packages: Path, base_url: str, key: str, browser_address: Path, environment: dict[str, str]
) -> Iterator[LavaDriver]:
    with subprocess.Popen(
        [program, "lava.mjs"],
        cwd=packages,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield LavaDriver(process, base_url, key, browser_address)
        assert process.stdin
        process.stdin.close()
        process.wait(10)


def fake_browser(directory: Path) -> tuple[Path, dict[str, str]]:
    """The file to which an address is written in the place of opening it, and the environment in which that happens."""
    address, program = directory / "address", directory / "xdg-open"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {address}.partial && mv {address}.partial {address}\n')
    program.chmod(0o755)
    return address, {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
