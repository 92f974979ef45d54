"""docs/metering.md says of each provider what its figures include; the recordings say whether that is so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway import providers

ROOT = Path(__file__).resolve().parents[3]
RECORDINGS = ROOT.parent / "shared" / "recordings" / "http"
PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount")
COMPLETION = ("completion_tokens", "output_tokens", "candidatesTokenCount")

Claims = dict[tuple[str, str], tuple[str, str]]


def documented() -> Claims:
    """(provider, format): what is said of cached tokens and of reasoning, "" for a dash."""
    claims = {}
    for line in (ROOT / "docs" / "metering.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("`"):
            cached, reasoning = (cell.partition(",")[0].strip("-") for cell in cells[2:4])
            claims[cells[0].strip("`"), cells[1].strip("`")] = cached, reasoning
    return claims


def number(usage: dict[str, Any], *names: str) -> int:
    return next((usage[name] for name in names if isinstance(usage.get(name), int)), 0)


def place(whole: int, told: int, part: int) -> str:
    """Where a part is that makes `whole` of what was told."""
    return {told: "within", told + part: "beside"}.get(whole, f"odd: {whole} of {told} and {part}")


def recorded() -> dict[tuple[str, str], tuple[Counter[str], Counter[str]]]:
    table = providers.load()
    found: dict[tuple[str, str], tuple[Counter[str], Counter[str]]] = {}
    for path in sorted(RECORDINGS.glob("*.json")):
        record = json.loads(path.read_bytes())
        usage, expected = record["raw_usage"], record["expected"]
        if not usage or "billed_units" in usage:
            continue
        row = table.by_origin(f"https://{record['host']}", record["path"])
        name = (table.format_elsewhere if row is None else row.format_of)(record["method"], record["path"])
        cached, reasoning = found.setdefault((record["provider"], name), (Counter(), Counter()))
        part = (expected["cached_input_tokens"] or 0) + (expected["cache_write_tokens"] or 0)
        if part:
            told = number(usage, *PROMPT) + number(usage, "toolUsePromptTokenCount")
            cached[place(expected["input_tokens"], told, part)] += 1
        if expected["reasoning_tokens"] and expected["output_tokens"] is not None:
            told = number(usage, *COMPLETION)
            reasoning[place(expected["output_tokens"], told, expected["reasoning_tokens"])] += 1
    return found


def test_what_is_said_of_each_provider_is_what_was_recorded() -> None:
    if not RECORDINGS.is_dir():
        pytest.skip(f"the recorded exchanges are not there: {RECORDINGS}")
    shown = {key: tuple("/".join(sorted(one)) for one in pair) for key, pair in recorded().items() if any(pair)}
    assert shown == documented()
    assert len(shown) > 20
