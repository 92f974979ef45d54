"""Writes the generated part of docs/providers.md from the provider table, the formats and the recordings.

python tests/unit/provider_table.py     # after a change of config/providers.toml or of a format
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "providers.md"
RECORDINGS = ROOT.parent / "shared" / "recordings" / "http"
BEGIN, END = "<!-- generated from here -->\n", "<!-- to here -->\n"

sys.path.insert(0, str(ROOT))
from gateway import providers  # noqa: E402
from gateway.proxy.metering import TOKEN_FORMATS  # noqa: E402
from gateway.wire.formats import FORMATS  # noqa: E402

# What each format is metered from: (not streamed, streamed). Every format has an entry; a test holds this.
METERED = {
    "openai_chat": ("told", "told, asked for where needed; else counted"),
    "openai_completions": ("told", "told, asked for where needed; else counted"),
    "mistral_fim": ("told", "told"),
    "openai_responses": ("told", "told in the last event"),
    "openai_embeddings": ("told", "-"),
    "anthropic_messages": ("told", "told at the beginning and the end"),
    "anthropic_count_tokens": ("free", "-"),
    "gemini_generate": ("told", "-"),
    "gemini_stream": ("-", "told in each chunk, the last one counts; SSE or a JSON array"),
    "gemini_embed": ("told since gemini-embedding-2; else counted", "-"),
    "gemini_count_tokens": ("free", "-"),
    "cohere_v1_chat": ("told (billed units)", "told in the last line"),
    "cohere_v2_chat": ("told (billed units)", "told in the last event"),
    "cohere_embed": ("told (billed units)", "-"),
    "rerank": ("told: search units or tokens", "-"),
    "images": ("told; the images are counted", "told in the last event"),
    "hyperbolic_images": ("the images are counted", "-"),
    "audio_speech": ("characters of the request; gpt-4o models: sound, estimated", "told in the last event"),
    "audio_transcriptions": (
        "told: tokens or seconds; else the recording's length, estimated",
        "told in the last event",
    ),
    "elevenlabs_tts": ("characters of the request", "characters of the request"),
    "elevenlabs_stt": ("told: seconds; else the recording's length, estimated", "-"),
    "moderations": ("free", "-"),
    "plain": ("free", "-"),
    "http": ("calls, bytes, time", "calls, bytes, time"),
}


def generated() -> str:
    """The tables. The recordings must be beside the repository."""
    table = providers.load()
    proof, others = _recorded(table)
    parts = ["### Formats\n", "| format | not streamed | streamed |", "|---|---|---|"]
    parts += [f"| `{name}` | {METERED[name][0]} | {METERED[name][1]} |" for name in FORMATS]
    parts += ["", "### Providers\n", "| provider | formats | recordings that prove it |", "|---|---|---|"]
    parts += [_row(row, proof[row.name.lower()]) for row in table]
    parts += [f"| any other host | {_names(_other_formats(table))}, `http` | {_proof(others)} |"]
    return "\n".join(parts) + "\n"


def _row(row: providers.Provider, proof: Counter[tuple[str, str]]) -> str:
    return f"| {row.name} | {_names(row.path_formats.names)} | {_proof(proof)} |"


def _other_formats(table: providers.Providers) -> set[str]:
    return set(table.other_formats.names)


def _names(names: set[str] | frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in FORMATS if name in names - {"plain"})


def _proof(found: Counter[tuple[str, str]]) -> str:
    """`format` told + streamed and told (counted), in the order of the formats."""
    shown = []
    for name in FORMATS:
        told, streamed, counted = (found[name, kind] for kind in ("told", "streamed", "counted"))
        if told or streamed or counted:
            shown.append(f"`{name}` {told} + {streamed}" + (f", {counted} counted" if counted else ""))
    return "; ".join(shown) or "none"


def _recorded(table: providers.Providers) -> tuple[dict[str, Counter[tuple[str, str]]], Counter[tuple[str, str]]]:
    proof: dict[str, Counter[tuple[str, str]]] = {row.name.lower(): Counter() for row in table}
    others: Counter[tuple[str, str]] = Counter()
    for path in sorted(RECORDINGS.glob("*.json")):
        record = json.loads(path.read_bytes())
        if record["status"] >= 400:
            continue
        row = table.by_origin(f"https://{record['host']}", record["path"])
        format_of = table.format_elsewhere if row is None else row.format_of
        name = format_of(record["method"], record["path"])
        (others if row is None else proof[row.name.lower()])[name, _kind(record, name)] += 1
    return proof, others


def _kind(record: dict[str, object], name: str) -> str:
    usage = record["expected"]
    assert isinstance(usage, dict)
    if name in TOKEN_FORMATS and usage["input_tokens"] is None and usage["output_tokens"] is None:
        return "counted"
    return "streamed" if record["stream"] else "told"


def main() -> None:
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(head + BEGIN + "\n" + generated() + "\n" + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
