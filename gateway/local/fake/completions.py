"""OpenAI's legacy text completions."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.local.fake.answer import Answer, Prompt
from gateway.local.fake.call import Call, FakeError, JsonObject
from gateway.local.fake.chat import (
    CHOICES_MAX,
    DONE,
    asks_for_usage,
    check_stream_options,
    finish_reason,
    usage,
)
from gateway.local.fake.reply import (
    MID_STREAM_MESSAGE,
    SSE,
    Format,
    Reply,
    choices_field,
    error_body,
    json_reply,
    sse,
    text_field,
    whole_field,
)


def read(call: Call) -> Prompt:
    fields = call.fields()
    check_stream_options(fields)
    text = text_field(fields, "prompt")
    return Prompt(
        call=call,
        model=text_field(fields, "model"),
        texts=(text,),
        user_texts=(text,),
        messages=0,
        max_output_tokens=whole_field(fields, "max_tokens"),
        stream=fields.get("stream") is True,
        choices=choices_field(fields, "n", CHOICES_MAX),
        fields=fields,
    )


def render(answer: Answer) -> Reply:
    if answer.prompt.stream:
        return _stream(answer)
    body = _base(answer) | {"choices": _choices(answer, answer.text(), finish_reason(answer))}
    if answer.usage_mode != "none":
        body["usage"] = usage(answer.tokens, answer.prompt.choices)
    return json_reply(body, fingerprint=answer.fingerprint)


def _base(answer: Answer) -> JsonObject:
    return {
        "id": f"cmpl-{answer.fingerprint[:29]}",
        "object": "text_completion",
        "created": answer.created_s,
        "model": answer.model,
    }


def _choices(answer: Answer, text: str, finish: str | None) -> list[JsonObject]:
    return [
        {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
        for index in range(answer.prompt.choices)
    ]


def _stream(answer: Answer) -> Reply:
    return Reply(
        200,
        SSE,
        deltas=_deltas(answer),
        delta_count=answer.chunks,
        tail=_tail(answer),
        error=sse(error_body("openai", FakeError(500, MID_STREAM_MESSAGE), answer.fingerprint)),
        stream=True,
    )


def _deltas(answer: Answer) -> Iterator[bytes]:
    cumulative = answer.usage_mode == "cumulative"
    for text, tokens in answer.counted_deltas():
        used = usage(tokens, answer.prompt.choices) if cumulative else None
        yield _chunk(answer, text, None, used)


def _tail(answer: Answer) -> bytes:
    mode = answer.usage_mode
    final = usage(answer.tokens, answer.prompt.choices)
    events = _chunk(answer, "", finish_reason(answer), final if mode in ("twice", "cumulative") else None)
    if mode == "twice" or (asks_for_usage(answer.prompt) and mode != "none"):
        events += sse(_base(answer) | {"choices": [], "usage": final})
    return events + DONE


def _chunk(answer: Answer, text: str, finish: str | None, used: JsonObject | None) -> bytes:
    chunk = _base(answer) | {"choices": _choices(answer, text, finish)}
    if asks_for_usage(answer.prompt) or used is not None:
        chunk["usage"] = used
    return sse(chunk)


FORMAT = Format("openai", read, render)
