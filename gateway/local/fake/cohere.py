"""Cohere's v2 chat. What is billed (`billed_units`) stands beside what was counted (`tokens`), which is more."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.local.fake.answer import Answer, Prompt, Tokens
from gateway.local.fake.call import Call, FakeError, JsonObject
from gateway.local.fake.reply import (
    MID_STREAM_MESSAGE,
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

TEMPLATE_TOKENS = 480
"""What Cohere's own template adds to a prompt: counted, not billed."""
DONE = b"data: [DONE]\n\n"


def read(call: Call) -> Prompt:
    fields = call.fields()
    messages = messages_field(fields, "messages")
    return Prompt(
        call=call,
        model=text_field(fields, "model"),
        texts=tuple(text for message in messages for text in content_texts(message.get("content"))),
        user_texts=last_user_texts(messages),
        messages=len(messages),
        max_output_tokens=whole_field(fields, "max_tokens"),
        stream=fields.get("stream") is True,
        fields=fields,
    )


def usage(tokens: Tokens) -> JsonObject:
    return {
        "billed_units": {"input_tokens": tokens.prompt, "output_tokens": tokens.completion},
        "tokens": {"input_tokens": tokens.prompt + TEMPLATE_TOKENS, "output_tokens": tokens.completion + 1},
    }


def _ending(answer: Answer) -> JsonObject:
    told = {} if answer.usage_mode == "none" else {"usage": usage(answer.tokens)}
    return {"finish_reason": "MAX_TOKENS" if answer.cut_short else "COMPLETE", **told}


def render(answer: Answer) -> Reply:
    if answer.prompt.stream:
        return _stream(answer)
    message = {"role": "assistant", "content": [{"type": "text", "text": answer.text()}]}
    body = {"id": answer.fingerprint[:32], "message": message, **_ending(answer)}
    return json_reply(body, dialect="cohere", fingerprint=answer.fingerprint)


def _stream(answer: Answer) -> Reply:
    empty = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    opened = {"message": {"content": {"type": "text", "text": ""}}}
    end = _event("message-end", delta=_ending(answer))
    return Reply(
        200,
        SSE,
        head=_event("message-start", id=answer.fingerprint[:32], delta={"message": empty})
        + _event("content-start", index=0, delta=opened),
        deltas=_deltas(answer),
        delta_count=answer.chunks,
        tail=_event("content-end", index=0) + end * (2 if answer.usage_mode == "twice" else 1) + DONE,
        error=sse(error_body("cohere", FakeError(500, MID_STREAM_MESSAGE), answer.fingerprint)),
        stream=True,
    )


def _deltas(answer: Answer) -> Iterator[bytes]:
    for text in answer.deltas():
        yield _event("content-delta", index=0, delta={"message": {"content": {"text": text}}})


def _event(kind: str, **fields: object) -> bytes:
    return sse({"type": kind, **fields}, kind)


FORMAT = Format("cohere", read, render)
