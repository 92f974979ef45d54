"""Gemini's native formats: generateContent, both ways of streaming it, countTokens and the embeddings.

With alt=sse a stream has CRLF line ends; without, it is one JSON array whose elements arrive over time. The prompt
includes cached tokens, candidates exclude thoughts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.local.fake.answer import Answer, Prompt, Tokens, count_words, prompt_tokens
from gateway.local.fake.call import Call, FakeError, JsonObject
from gateway.local.fake.media import vector
from gateway.local.fake.reply import (
    MID_STREAM_MESSAGE,
    Format,
    Reply,
    choices_field,
    content_texts,
    error_body,
    json_reply,
    last_user_texts,
    messages_field,
    sse,
    whole_field,
)

CANDIDATES_MAX = 8
EMBEDDING_DIMENSIONS = 3_072


def read(call: Call) -> Prompt:
    fields = call.fields()
    contents = messages_field(fields, "contents")
    config = fields.get("generationConfig") or fields.get("generation_config") or {}
    if not isinstance(config, dict):
        raise FakeError(400, "Invalid 'generationConfig': expected an object.", "generationConfig")
    system = _system_texts(fields)
    return Prompt(
        call=call,
        model=call.path_values["model"],
        texts=(*system, *(text for content in contents for text in content_texts(content.get("parts")))),
        user_texts=last_user_texts(contents, "parts"),
        messages=len(contents) + (1 if system else 0),
        max_output_tokens=whole_field(config, "maxOutputTokens", "max_output_tokens"),
        stream=call.path_values["method"] == "streamGenerateContent",
        choices=choices_field(config, "candidateCount", CANDIDATES_MAX),
        fields=fields,
    )


def _system_texts(fields: JsonObject) -> list[str]:
    system = fields.get("systemInstruction") or fields.get("system_instruction")
    return content_texts(system.get("parts")) if isinstance(system, dict) else []


def usage(tokens: Tokens, candidates: int) -> JsonObject:
    """usageMetadata; a count that is zero is left out where the real one leaves it out."""
    visible = (tokens.completion - tokens.reasoning) * candidates
    thoughts = tokens.reasoning * candidates
    used: JsonObject = {
        "promptTokenCount": tokens.prompt,
        "candidatesTokenCount": visible,
        "totalTokenCount": tokens.prompt + visible + thoughts,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens.prompt}],
    }
    if tokens.cached:
        used["cachedContentTokenCount"] = tokens.cached
    if thoughts:
        used["thoughtsTokenCount"] = thoughts
    return used


def render(answer: Answer) -> Reply:
    if not answer.prompt.stream:
        body = _chunk(answer, answer.text(), answer.tokens, final=True)
        return json_reply(body, dialect="google", fingerprint=answer.fingerprint)
    return _sse_stream(answer) if answer.prompt.call.query.get("alt") == "sse" else _array_stream(answer)


def render_count(answer: Answer) -> Reply:
    tokens = prompt_tokens(answer.prompt)
    details = [{"modality": "TEXT", "tokenCount": tokens}]
    return json_reply(
        {"totalTokens": tokens, "promptTokensDetails": details}, dialect="google", fingerprint=answer.fingerprint
    )


def _chunk(answer: Answer, text: str, tokens: Tokens, *, final: bool) -> JsonObject:
    candidate: JsonObject = {"content": {"parts": [{"text": text}], "role": "model"}}
    if final:
        candidate["finishReason"] = "MAX_TOKENS" if answer.cut_short else "STOP"
    chunk: JsonObject = {"candidates": [{**candidate, "index": index} for index in range(answer.prompt.choices)]}
    if answer.usage_mode != "none":
        chunk["usageMetadata"] = usage(tokens, answer.prompt.choices)
    return chunk | {"modelVersion": answer.model, "responseId": answer.fingerprint[:23]}


def _chunks(answer: Answer) -> Iterator[JsonObject]:
    for text, tokens in answer.counted_deltas():
        yield _chunk(answer, text, tokens, final=False)


def _last_chunks(answer: Answer) -> list[JsonObject]:
    last = _chunk(answer, "", answer.tokens, final=True)
    return [last, last] if answer.usage_mode == "twice" else [last]


def _failure(answer: Answer) -> JsonObject:
    return error_body("google", FakeError(503, MID_STREAM_MESSAGE), answer.fingerprint)


def _sse_stream(answer: Answer) -> Reply:
    return Reply(
        200,
        "text/event-stream",
        deltas=(sse(chunk, newline="\r\n") for chunk in _chunks(answer)),
        delta_count=answer.chunks,
        tail=b"".join(sse(chunk, newline="\r\n") for chunk in _last_chunks(answer)),
        error=sse(_failure(answer), newline="\r\n"),
        stream=True,
    )


def _array_stream(answer: Answer) -> Reply:
    separator = b",\r\n" if answer.chunks else b""
    return Reply(
        200,
        "application/json; charset=UTF-8",
        head=b"[",
        deltas=_array_elements(_chunks(answer)),
        delta_count=answer.chunks,
        tail=separator + b",\r\n".join(map(_indented, _last_chunks(answer))) + b"]",
        error=separator + _indented(_failure(answer)) + b"]",
        stream=True,
    )


def _array_elements(chunks: Iterator[JsonObject]) -> Iterator[bytes]:
    for index, chunk in enumerate(chunks):
        yield (b",\r\n" if index else b"") + _indented(chunk)


def _indented(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


def read_embedding(call: Call) -> Prompt:
    """embedContent has one content, batchEmbedContents a list of requests with one each."""
    fields = call.fields()
    requests = [fields] if call.path_values["method"] == "embedContent" else messages_field(fields, "requests")
    return Prompt(
        call=call,
        model=call.path_values["model"],
        texts=tuple(map(_embedded_text, requests)),
        fields=fields,
    )


def _embedded_text(request: JsonObject) -> str:
    content = request.get("content")
    if not isinstance(content, dict):
        raise FakeError(400, "Invalid 'content': expected an object.", "content")
    return " ".join(content_texts(content.get("parts")))


def render_embedding(answer: Answer) -> Reply:
    """Only gemini-embedding-2 reports usage; the older models leave the caller to count."""
    prompt = answer.prompt
    single = prompt.call.path_values["method"] == "embedContent"
    requests = [prompt.fields] if single else prompt.fields["requests"]
    embeddings = [
        {"values": vector(text, whole_field(request, "outputDimensionality") or EMBEDDING_DIMENSIONS).tolist()}
        for text, request in zip(prompt.texts, requests, strict=True)
    ]
    body: JsonObject = {"embedding": embeddings[0]} if single else {"embeddings": embeddings}
    if prompt.model.startswith("gemini-embedding-2") and answer.usage_mode != "none":
        tokens = sum(map(count_words, prompt.texts))
        details = [{"modality": "TEXT", "tokenCount": tokens}]
        body["usageMetadata"] = {"promptTokenCount": tokens, "promptTokensDetails": details, "totalTokenCount": tokens}
    return json_reply(body, dialect="google", fingerprint=answer.fingerprint)


GENERATE = Format("google", read, render)
COUNT_TOKENS = Format("google", read, render_count)
EMBED = Format("google", read_embedding, render_embedding)
