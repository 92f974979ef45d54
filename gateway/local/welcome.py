"""What `obol up` prints when it is ready."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TARGET = "https://api.openai.com/v1/chat/completions"
_MODEL = "gpt-4o-mini"


def text(state: Mapping[str, Any], data_dir: Path, seeded: Mapping[str, Any] | None) -> str:
    """A table of `state` (up.json) and, with a demo merchant, two commands to paste.

    `seeded` is what demo.seed returned: `forward_token`, `secret_key` and `connection_id`.
    """
    signed_in = f"#key={seeded['secret_key']}" if seeded is not None else ""
    rows = [
        ("base URL", state["base_url"]),
        ("dashboard", state["dashboard_url"] + signed_in),
        ("metrics", state["metrics_url"]),
        ("data", str(data_dir)),
    ]
    link = data_dir / "postgres"
    if state["postgres_pid"] is not None and link.is_symlink():
        rows.append(("", f"{link.readlink()} (PostgreSQL; part of the data: back it up too)"))
    if state["fake_provider_url"]:
        rows.append(("fake provider", state["fake_provider_url"]))
    lines = ["Obol is ready.", "", *(f"  {name:<14} {value}" for name, value in rows)]
    if seeded is not None:
        lines += ["", "A streamed call, billed to the demo customer:", "", f"  {_call(state, seeded)}"]
        lines += ["", "Its priced row, and the customer's balance:", "", f"  {_look(state, seeded)}"]
    return "\n".join([*lines, "", "Ctrl-C stops it.", ""])


def _call(state: Mapping[str, Any], seeded: Mapping[str, Any]) -> str:
    body = {"model": _MODEL, "stream": True, "messages": [{"role": "user", "content": "What does a gateway meter?"}]}
    return _curl(
        "-N",
        f"{state['base_url']}forward?u={_TARGET}",
        *_header(f"authorization: Bearer {seeded['forward_token']}"),
        *_header("content-type: application/json"),
        "-d",
        json.dumps(body),
    )


def _look(state: Mapping[str, Any], seeded: Mapping[str, Any]) -> str:
    base = state["base_url"]
    return _curl(
        f"{base}requests?limit=1",
        f"{base}connections/{seeded['connection_id']}",
        *_header(f"authorization: Bearer {seeded['secret_key']}"),
    )


def _header(line: str) -> tuple[str, str]:
    return ("-H", line)


def _curl(*arguments: str) -> str:
    return shlex.join(("curl", "-s", *arguments))
