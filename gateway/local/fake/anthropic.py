"""Anthropic messages and count_tokens. `input_tokens` excludes what was read from or written to the cache."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.local.fake.answer import Answer, Prompt, Tokens, prompt_tokens
from gateway.local.fake.call import Call, FakeError, JsonObject
from gateway.local.fake.reply import (
    SSE,
    Format,
    Reply,
    content_texts,
    error_body,
    json_reply,
    last_user_texts,
    messages_field,
    sse,
    text_field,
    whole_field,
)

OVERLOADED = FakeError(529, "Overloaded")


def read(call: Call) -> Prompt:
    prompt = read_uncapped(call)
    if prompt.max_output_tokens is None:
        raise FakeError(400, "max_tokens: Field required", "max_tokens")
    return prompt


def read_uncapped(call: Call) -> Prompt:
    """As `read`, but max_tokens may be absent, as in count_tokens."""
    fields = call.fields()
    messages = messages_field(fields, "messages")
    system = content_texts(fields.get("system"))
    return Prompt(
        call=call,
        model=text_field(fields, "model"),
        texts=(*system, *(text for message in messages for text in content_texts(message.get("content")))),
        user_texts=last_user_texts(messages),
        messages=len(messages) + (1 if system else 0),
        max_output_tokens=whole_field(fields, "max_tokens"),
        stream=fields.get("stream") is True,
        choices=1,
        fields=fields,
    )


def usage(tokens: Tokens, output_tokens: int) -> JsonObject:
    return {
        "input_tokens": tokens.prompt - tokens.cached - tokens.cache_write,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": tokens.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def render(answer: Answer) -> Reply:
    if answer.prompt.stream:
        return _stream(answer)
    message = _message(answer, [{"type": "text", "text": answer.text()}], stop_reason(answer))
    if answer.usage_mode != "none":
        message["usage"] = usage(answer.tokens, answer.tokens.completion)
    return json_reply(message, dialect="anthropic", fingerprint=answer.fingerprint)


def render_count(answer: Answer) -> Reply:
    """count_tokens: the prompt's tokens, nothing produced."""
    return json_reply(
        {"input_tokens": prompt_tokens(answer.prompt)}, dialect="anthropic", fingerprint=answer.fingerprint
    )


def stop_reason(answer: Answer) -> str:
    return "max_tokens" if answer.cut_short else "end_turn"


def _message(answer: Answer, content: list[JsonObject], stop: str | None) -> JsonObject:
    return {
        "id": f"msg_{answer.fingerprint[:24]}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
    }


def _stream(answer: Answer) -> Reply:
    return Reply(
        200,
        SSE,
        head=_head(answer),
        deltas=_deltas(answer),
        delta_count=answer.chunks,
        tail=_tail(answer),
        error=sse(error_body("anthropic", OVERLOADED, answer.fingerprint), "error"),
        stream=True,
    )


def _event(kind: str, **fields: object) -> bytes:
    return sse({"type": kind, **fields}, kind)


def _head(answer: Answer) -> bytes:
    message = _message(answer, [], None)
    if answer.usage_mode != "none":
        # The real one starts with a small placeholder for the output, which the last message_delta replaces.
        message["usage"] = usage(answer.tokens, 1)
    started = _event("message_start", message=message)
    return started + _event("content_block_start", index=0, content_block={"type": "text", "text": ""}) + _event("ping")


def _deltas(answer: Answer) -> Iterator[bytes]:
    for text, tokens in answer.counted_deltas():
        event = _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        if answer.usage_mode == "cumulative":
            event += _message_delta(tokens, None)
        yield event


def _tail(answer: Answer) -> bytes:
    stop = stop_reason(answer)
    if answer.usage_mode == "none":
        ending = _event("message_delta", delta={"stop_reason": stop, "stop_sequence": None})
    else:
        ending = _message_delta(answer.tokens, stop) * (2 if answer.usage_mode == "twice" else 1)
    return _event("content_block_stop", index=0) + ending + _event("message_stop")


def _message_delta(tokens: Tokens, stop: str | None) -> bytes:
    """Cumulative usage; like the real one it repeats the input's fields but not the breakdown of cache writes."""
    used = usage(tokens, tokens.completion)
    del used["cache_creation"], used["service_tier"]
    if tokens.reasoning:
        used["output_tokens_details"] = {"thinking_tokens": tokens.reasoning}
    return _event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=used)


MESSAGES = Format("anthropic", read, render)
COUNT_TOKENS = Format("anthropic", read_uncapped, render_count)
