"""Writes the generated part of docs/providers.md from the provider table, the formats and the recordings.

python tests/unit/provider_table.py     # after a change of config/providers.toml or of a format
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "providers.md"
RECORDINGS = ROOT.parent / "shared" / "recordings"
BEGIN, END = "<!-- generated from here -->\n", "<!-- to here -->\n"

sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "tests" / "integration"))
from recorded_exchanges import exchanges  # noqa: E402
from recorded_metering import metered  # noqa: E402

from gateway import providers  # noqa: E402
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
    "images": ("told; how many images there are, of which kind (told, else as asked for)", "told in the last event"),
    "hyperbolic_images": ("how many images there are, of the kind asked for", "-"),
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
REALTIME = "realtime (WebSocket)"
LISTED = tuple(name for name in FORMATS if name not in ("plain", "http"))
OTHER_HOST = "any other host"
UNPROVED = "as above; no recording"


class Kind(NamedTuple):
    """One cell of the table: what became of a successful exchange."""

    provider: str
    format: str
    streamed: bool
    how: str
    """"told", "counted" or "free"."""


def generated() -> str:
    """The tables. The recordings must be beside the repository."""
    table = providers.load()
    proof = Counter(_recorded(table))
    parts = ["### Formats\n", "| format | not streamed | streamed |", "|---|---|---|"]
    parts += [f"| `{name}` | {METERED[name][0]} | {METERED[name][1]} |" for name in FORMATS]
    parts += [f"| {REALTIME} | - | told after each response |"]
    parts += ["", "### Providers and formats\n"]
    parts += ["| provider | format | not streamed | streamed |", "|---|---|---|---|"]
    for row in table:
        parts += _rows(row.name, row.path_formats.names, proof, realtime=bool(row.realtime_paths))
    parts += _rows(OTHER_HOST, table.other_formats.names | {"http"}, proof, realtime=False)
    return "\n".join(parts) + "\n"


def _rows(provider: str, names: Iterable[str], proof: Counter[Kind], *, realtime: bool) -> Iterator[str]:
    """A row for each format that recordings prove, one for those that none does, one for those that are refused."""
    served = [name for name in (*LISTED, "http") if name in set(names)]
    proved = [name for name in served if any(proof[kind] for kind in _kinds(provider, name))]
    for name in proved:
        cells = (_cell(provider, name, streamed, proof) for streamed in (False, True))
        yield f"| {provider} | `{name}` | {' | '.join(cells)} |"
    if realtime:
        sessions = sum(1 for _ in _sessions(provider))
        yield f"| {provider} | {REALTIME} | - | {f'told {sessions}' if sessions else UNPROVED} |"
    if unproved := [name for name in served if name not in proved]:
        yield f"| {provider} | {', '.join(f'`{name}`' for name in unproved)} | {UNPROVED} | {UNPROVED} |"
    if "http" not in served:
        yield f"| {provider} | all others | refused | refused |"


def _cell(provider: str, name: str, streamed: bool, proof: Counter[Kind]) -> str:
    found = {how: proof[Kind(provider, name, streamed, how)] for how in ("told", "counted", "free")}
    return ", ".join(f"{how} {number}" for how, number in found.items() if number) or "-"


def _kinds(provider: str, name: str) -> Iterator[Kind]:
    for how in ("told", "counted", "free"):
        yield Kind(provider, name, False, how)
        yield Kind(provider, name, True, how)


def _recorded(table: providers.Providers) -> Iterator[Kind]:
    """Every successful exchange, read by the format of its path, as the gateway does."""
    for one in exchanges():
        if one.exchange.status >= 400:
            continue
        known = table.by_origin(one.origin, one.path)
        found = metered(table, one)
        reading = found.reading
        how = "free" if found.free else "counted" if reading.usage is None or reading.estimated else "told"
        yield Kind(known.name if known else OTHER_HOST, found.format, one.exchange.stream, how)


def _sessions(provider: str) -> Iterator[Path]:
    for path in sorted((RECORDINGS / "realtime").glob("*.json")):
        if json.loads(path.read_bytes())["provider"] == provider:
            yield path


def main() -> None:
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(head + BEGIN + "\n" + generated() + "\n" + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
