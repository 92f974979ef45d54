"""Recorded provider exchanges as test data, read from outside the repository; absent, the tests skip."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import pytest

from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.formats import FORMATS

DIRECTORY = Path(__file__).resolve().parents[4] / "shared" / "recordings" / "http"
LIMIT_BYTES = 32 * 1024 * 1024

FORMAT_OF_ENDPOINT = {
    "chat_completions": "openai_chat",
    "completions": "openai_completions",
    "responses": "openai_responses",
    "embeddings": "openai_embeddings",
    "anthropic_messages": "anthropic_messages",
    "gemini_generate": "gemini_generate",
    "gemini_stream": "gemini_stream",
    "gemini_embed": "gemini_embed",
    "cohere_v1_chat": "cohere_v1_chat",
    "cohere_v2_chat": "cohere_v2_chat",
    "cohere_embed": "cohere_embed",
    "rerank": "rerank",
    "images_generations": "images",
    "images_edits": "images",
    "audio_speech": "audio_speech",
    "audio_transcriptions": "audio_transcriptions",
    "elevenlabs_tts": "elevenlabs_tts",
    "elevenlabs_stt": "elevenlabs_stt",
    "moderations": "moderations",
}


class Exchange(NamedTuple):
    """One recorded exchange with its bodies as the gateway's meter would see them: decoded bytes."""

    id: str
    provider: str
    format: str
    path: str
    query: str
    status: int
    content_type: str
    stream: bool
    request: bytes
    response: bytes
    expected: dict[str, Any]
    extra: dict[str, Any]

    def request_told(self, field: str) -> bool:
        """False for what is billed by the request where the recording has lost it."""
        return bool(self.request) or field != "input_characters"

    def facts(self) -> RequestFacts:
        """Recordings without a request body get the facts the recording tells."""
        if not self.request:
            return RequestFacts(stream=self.stream)
        return FORMATS[self.format].read_request(self.request, self.path, self.query)

    def meter(self, *, hide_usage: bool = False, limit_bytes: int = LIMIT_BYTES) -> Meter:
        """A meter as the proxy makes it."""
        return FORMATS[self.format].meter(
            self.facts(),
            provider=self.provider,
            content_type=self.content_type,
            hide_usage=hide_usage,
            limit_bytes=limit_bytes,
        )


def _body(record: dict[str, Any], side: str) -> bytes:
    text = record.get(f"{side}_body") or ""
    return base64.b64decode(text) if record.get(f"{side}_body_encoding") == "base64" else text.encode()


def _decoded(body: bytes, headers: dict[str, str], is_decoded: bool) -> bytes:
    encoding = headers.get("content-encoding", "")
    if is_decoded or not encoding:
        return body
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":
        return zlib.decompress(body)
    assert encoding == "br", encoding
    return bytes(brotli.decompress(body))


def _format(endpoint: str, provider: str) -> str:
    name = FORMAT_OF_ENDPOINT[endpoint]
    return "hyperbolic_images" if name == "images" and provider == "hyperbolic" else name


def _exchange(path: Path) -> Exchange:
    record = json.loads(path.read_bytes())
    headers = {name.lower(): value for name, value in record["response_headers"].items()}
    target, _, query = record["path"].partition("?")
    return Exchange(
        id=record["id"],
        provider=record["provider"],
        format=_format(record["endpoint"], record["provider"]),
        path=target,
        query=query,
        status=record["status"],
        content_type=headers.get("content-type", ""),
        stream=bool(record["stream"]),
        request=_body(record, "request"),
        response=_decoded(_body(record, "response"), headers, record["body_is_decoded"]),
        expected=record["expected"],
        extra=record["expected_extra"] or {},
    )


@cache
def exchanges() -> tuple[Exchange, ...]:
    """Every recorded exchange of a format read here."""
    if not DIRECTORY.is_dir():
        pytest.skip(f"the recorded exchanges are not there: {DIRECTORY}")
    return tuple(map(_exchange, sorted(DIRECTORY.glob("*.json"))))
