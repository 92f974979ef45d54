"""OpenAI embeddings and their copies (Mistral, Voyage, Together ...): input tokens only, never streamed."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import decode
from gateway.wire.openai_usage import embedding_usage
from gateway.wire.reader import Reader
from gateway.wire.requests import decode_body, loads, prompt_text, require_model, token_ids


class Request(msgspec.Struct):
    model: Any = None


class Response(msgspec.Struct):
    """Without `data`: the decoder skips the vectors."""

    id: Any = None
    model: Any = None
    usage: Any = None
    error: Any = None


class EmbeddingsReader(Reader):
    def observe_body(self, data: bytes) -> None:
        response = decode(data, Response)
        if response is None:
            return
        self.note(response.model, response.id)
        self.note_failure(response.error)
        self.usage = embedding_usage(response.usage)
        self.finished = self.failed is None

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self.usage = embedding_usage(usage)
        self.finished = self.usage is not None


class OpenAIEmbeddings(BaseFormat):
    """`/embeddings`."""

    name = "openai_embeddings"
    reader = EmbeddingsReader

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_body(body, Request)
        return RequestFacts(model=require_model(request.model, path), max_output_tokens=0)

    def request_text(self, body: bytes) -> str:
        return prompt_text(loads(body).get("input"))

    def request_media(self, body: bytes, model: str) -> Usage:
        return Usage(input_tokens=token_ids(loads(body).get("input")))
