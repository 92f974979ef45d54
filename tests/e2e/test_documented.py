"""The snippets of docs/clients.md, run as they stand: only the gateway's address and the key are put in."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
from pathlib import Path

import pytest
from installation import Customer, Installation

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
SNIPPETS = re.findall(r"^```(python|js)\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
BASE, TOKEN = "http://127.0.0.1:8080", "FORWARD_TOKEN"


def snippets(language: str) -> list[str]:
    return [code for of, code in SNIPPETS if of == language]


def first_line(code: str) -> str:
    return code.partition("\n")[0]


def prepared(code: str, installation: Installation, customer: Customer) -> str:
    assert BASE in code and TOKEN in code
    return code.replace(BASE, installation.url).replace(TOKEN, customer.token)


def check(printed: str, installation: Installation, customer: Customer) -> None:
    assert len(printed.split()) > 5
    row = installation.row(customer)
    assert (row["ending"], row["status"]) == ("completed", "completed")
    assert row["charge_nano"] > 0


@pytest.mark.parametrize("code", snippets("python"), ids=first_line)
def test_python(fake: Installation, customer: Customer, code: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(prepared(code, fake, customer), DOCUMENT.name, "exec"), {})
    check(printed.getvalue(), fake, customer)


@pytest.mark.parametrize("code", snippets("js"), ids=first_line)
def test_javascript(fake: Installation, customer: Customer, node: tuple[str, Path], code: str) -> None:
    program, packages = node
    ran = subprocess.run(
        [program, "--input-type=module", "-e", prepared(code, fake, customer)],
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    check(ran.stdout, fake, customer)


def test_there_are_snippets_for_all() -> None:
    assert (len(snippets("python")), len(snippets("js"))) == (9, 4)
