"""Rerank: search units (Cohere) or tokens (Together, Voyage, OpenRouter), never streamed."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.cohere import billed_usage
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import count, decode, first, items, mapping, text
from gateway.wire.reader import Reader
from gateway.wire.requests import decode_body, loads, prompt_text, require_model

# Cohere: a search unit is a query with up to 100 documents; one of more than 500 tokens counts as several.
_DOCUMENTS_OF_A_UNIT = 100
_CHUNK_BYTES_MIN = 500


class Request(msgspec.Struct):
    model: Any = None
    query: Any = None
    documents: Any = None


class Response(msgspec.Struct):
    id: Any = None
    model: Any = None
    meta: Any = None
    usage: Any = None
    error: Any = None


class RerankReader(Reader):
    def observe_body(self, data: bytes) -> None:
        response = decode(data, Response)
        if response is None:
            return
        self.note(response.model, response.id)
        self.note_failure(response.error)
        self.usage = first(billed_usage(response.meta), rerank_usage(response.usage))
        self.finished = self.failed is None

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self.usage = rerank_usage(usage)
        self.finished = self.usage is not None


def rerank_usage(value: Any) -> Usage | None:
    """Canonical usage of a usage object with token counts."""
    usage = mapping(value)
    tokens = first(count(usage.get("prompt_tokens")), count(usage.get("total_tokens")))
    if tokens is None:
        return None
    return Usage(input_tokens=tokens, output_tokens=count(usage.get("completion_tokens")))


class Rerank(BaseFormat):
    """`/rerank`."""

    name = "rerank"
    reader = RerankReader

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_body(body, Request)
        documents = len(items(request.documents))
        chunks = documents + len(body) // _CHUNK_BYTES_MIN
        # The query is read again with each piece.
        tokens = len(body) + len(text(request.query) or "") * chunks
        return RequestFacts(
            model=require_model(request.model),
            max_output_tokens=0,
            at_most=Usage(input_tokens=tokens, search_units=1 + chunks // _DOCUMENTS_OF_A_UNIT),
        )

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(request.get("query"), request.get("documents"))
