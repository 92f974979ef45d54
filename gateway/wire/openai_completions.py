"""OpenAI legacy completions: chat's usage, prompts instead of messages, `text` instead of `delta`."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import count_asked, decode, items, mapping, text
from gateway.wire.openai_chat import ChatReader, Chunk, OpenAIChat, choice_text
from gateway.wire.requests import decode_body, loads, prompt_text, require_model, token_ids


class Request(msgspec.Struct):
    model: Any = None
    prompt: Any = None
    stream: Any = None
    stream_options: Any = None
    max_tokens: Any = None
    n: Any = None
    best_of: Any = None


class CompletionsReader(ChatReader):
    def _text(self, data: bytes, member: str) -> str:
        chunk = decode(data, Chunk)
        choices = [mapping(choice) for choice in (items(chunk.choices) if chunk else [])]
        return "".join(text(choice.get("text")) or choice_text(choice, member) for choice in choices)


class OpenAICompletions(OpenAIChat):
    """`/completions`. `best_of` candidates are billed though not returned; each prompt of a list has its own."""

    name = "openai_completions"
    reader = CompletionsReader

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_body(body, Request)
        candidates = max(count_asked(request.n) or 1, count_asked(request.best_of) or 1, 1)
        return RequestFacts(
            model=require_model(request.model, path),
            stream=request.stream is True,
            # OpenAI's own default is 16; those who copied the endpoint have others, and none.
            max_output_tokens=count_asked(request.max_tokens),
            choices=candidates * _prompts(request.prompt),
            include_usage=mapping(request.stream_options).get("include_usage") is True,
        )

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(request.get("prompt"), request.get("suffix"))

    def request_media(self, body: bytes, model: str) -> Usage:
        return Usage(input_tokens=token_ids(loads(body).get("prompt")))


class FillInTheMiddle(OpenAIChat):
    """Mistral's `/fim/completions`: prompt and suffix go in, a chat completion comes out."""

    name = "mistral_fim"

    def upstream_body(self, body: bytes, facts: RequestFacts, *, inject_usage: bool) -> bytes:
        return body

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(request.get("prompt"), request.get("suffix"))


def _prompts(prompt: Any) -> int:
    """How many prompts there are: a list of strings or of token lists; a list of numbers is one prompt."""
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return 1
    return len(prompt)
