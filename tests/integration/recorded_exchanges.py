"""Recorded exchanges as requests to send, and what must come of them: read from outside the repository."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.local.fake.replay import Exchange, recorded_reply

DIRECTORY = Path(__file__).resolve().parents[3] / "shared" / "recordings" / "http"
TOKEN_FIELDS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")

# Credentials, and what the client that sends the request writes itself.
_NOT_SENT = frozenset(
    {
        "authorization",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
        "xi-api-key",
        "cookie",
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "expect",
    }
)


@dataclass(frozen=True)
class Recorded:
    """One exchange. `record` is its file; with `asks` False it is sent without its `stream_options`."""

    record: dict[str, Any]
    exchange: Exchange
    asks: bool = True

    @property
    def id(self) -> str:
        return self.exchange.id

    @property
    def origin(self) -> str:
        return f"https://{self.exchange.host}"

    @property
    def path(self) -> str:
        return self.exchange.path.partition("?")[0]

    @property
    def body_lost(self) -> bool:
        """Its recorder kept no body, although the method has one."""
        return self.exchange.method == "POST" and not self.exchange.request_body

    @property
    def sent_body(self) -> bytes:
        """As recorded; where the recorder lost it, the least that its response shows was asked for."""
        if not self.asks:
            fields = json.loads(self.exchange.request_bytes())
            return json.dumps({name: value for name, value in fields.items() if name != "stream_options"}).encode()
        if not self.body_lost:
            return self.exchange.request_bytes()
        model = self.record["expected"]["model"] or "unknown-model"
        return json.dumps({"model": model, "model_id": model, "stream": self.exchange.stream}).encode()

    @property
    def sent_headers(self) -> dict[str, str]:
        kept = {name: value for name, value in self.record["request_headers"].items() if name.lower() not in _NOT_SENT}
        if self.body_lost:
            kept = {name: value for name, value in kept.items() if name.lower() != "content-type"}
        return kept

    @property
    def asked_for_usage(self) -> bool:
        try:
            return bool(json.loads(self.sent_body)["stream_options"]["include_usage"])
        except (ValueError, KeyError, TypeError):
            return False

    def provider_bytes(self) -> tuple[bytes, str]:
        """The body that the replaying provider sends, and its content encoding."""
        headers, pieces = recorded_reply(self.exchange, {})
        return b"".join(pieces), headers.get("Content-Encoding", "")

    def expected_tokens(self) -> dict[str, int]:
        """Without what was not reported. A part is no larger than its whole: some tell more reasoning than output."""
        found = {name: self.record["expected"][name] for name in TOKEN_FIELDS}
        if found["reasoning_tokens"] is not None and found["output_tokens"] is not None:
            found["reasoning_tokens"] = min(found["reasoning_tokens"], found["output_tokens"])
        return {name: value for name, value in found.items() if value is not None}


def without_usage_only_chunks(body: bytes) -> bytes:
    """What a client that did not ask for usage sees, found the slow way: every event is decoded."""
    blank_line = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
    return blank_line.join(event for event in body.split(blank_line) if not _usage_only(event))


def _usage_only(event: bytes) -> bool:
    data = event.strip().removeprefix(b"data:").strip()
    chunk = json.loads(data) if data.startswith(b"{") else {}
    return chunk.get("choices") == [] and bool(chunk.get("usage")) and not chunk.keys() & {"error", "moderation"}


@cache
def exchanges() -> tuple[Recorded, ...]:
    """All of them, in the order of their ids. Absent, the test that asks skips."""
    if not DIRECTORY.is_dir():
        pytest.skip(f"the recorded exchanges are not there: {DIRECTORY}")
    return tuple(map(_read, sorted(DIRECTORY.glob("*.json"))))


def _read(path: Path) -> Recorded:
    content = path.read_bytes()
    return Recorded(json.loads(content), msgspec.json.decode(content, type=Exchange))
