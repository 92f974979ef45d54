"""OpenAI chat completions. Usage of a stream is sent only where `stream_options.include_usage` asks for it."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.local.fake.answer import Answer, Prompt, Tokens
from gateway.local.fake.call import Call, FakeError, JsonObject
from gateway.local.fake.reply import (
    MID_STREAM_MESSAGE,
    SSE,
    Format,
    Reply,
    choices_field,
    content_texts,
    error_body,
    json_reply,
    last_user_texts,
    messages_field,
    sse,
    text_field,
    whole_field,
)

DONE = b"data: [DONE]\n\n"
CHOICES_MAX = 128


def read(call: Call) -> Prompt:
    fields = call.fields()
    messages = messages_field(fields, "messages")
    check_stream_options(fields)
    return Prompt(
        call=call,
        model=text_field(fields, "model"),
        texts=tuple(text for message in messages for text in content_texts(message.get("content"))),
        user_texts=last_user_texts(messages),
        messages=len(messages),
        max_output_tokens=whole_field(fields, "max_completion_tokens", "max_tokens"),
        stream=fields.get("stream") is True,
        choices=choices_field(fields, "n", CHOICES_MAX),
        fields=fields,
    )


def check_stream_options(fields: JsonObject) -> None:
    """FakeError 400, as OpenAI has it, where stream_options stands without stream."""
    if fields.get("stream_options") is not None and fields.get("stream") is not True:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise FakeError(400, message, "stream_options")


def asks_for_usage(prompt: Prompt) -> bool:
    options = prompt.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def usage(tokens: Tokens, choices: int) -> JsonObject:
    """The usage object; each choice produces the same number of tokens, the prompt counts once."""
    completion = tokens.completion * choices
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": completion,
        "total_tokens": tokens.prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": tokens.cached,
            "cache_write_tokens": tokens.cache_write,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": tokens.reasoning * choices,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def finish_reason(answer: Answer) -> str:
    return "length" if answer.cut_short else "stop"


def render(answer: Answer) -> Reply:
    prompt = answer.prompt
    if prompt.stream:
        return _stream(answer)
    text = answer.text()
    message: JsonObject = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    choice = {"message": message, "logprobs": None, "finish_reason": finish_reason(answer)}
    body = _envelope(answer, "chat.completion") | {
        "choices": [{"index": index, **choice} for index in range(prompt.choices)],
        "service_tier": "default",
        "system_fingerprint": None,
    }
    if answer.usage_mode != "none":
        body["usage"] = usage(answer.tokens, prompt.choices)
    return json_reply(body, fingerprint=answer.fingerprint)


def _envelope(answer: Answer, kind: str) -> JsonObject:
    return {
        "id": f"chatcmpl-{answer.fingerprint[:29]}",
        "object": kind,
        "created": answer.created_s,
        "model": answer.model,
    }


def _stream(answer: Answer) -> Reply:
    chunks = _Chunks(answer)
    return Reply(
        200,
        SSE,
        head=chunks.head(),
        deltas=chunks.deltas(),
        delta_count=answer.chunks,
        tail=chunks.tail(),
        error=sse(error_body("openai", FakeError(500, MID_STREAM_MESSAGE), answer.fingerprint)),
        stream=True,
    )


class _Chunks:
    """The events of one stream."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._choices = range(answer.prompt.choices)
        self._asked = asks_for_usage(answer.prompt)
        self._base = _envelope(answer, "chat.completion.chunk") | {
            "service_tier": "default",
            "system_fingerprint": None,
        }

    def head(self) -> bytes:
        return self._for_each_choice({"role": "assistant", "content": "", "refusal": None}, None, self._usage_after(0))

    def deltas(self) -> Iterator[bytes]:
        for index, text in enumerate(self._answer.deltas(), start=1):
            yield self._for_each_choice({"content": text}, None, self._usage_after(index))

    def tail(self) -> bytes:
        mode = self._answer.usage_mode
        final = usage(self._answer.tokens, len(self._choices))
        on_finish = final if mode in ("twice", "cumulative") else None
        events = self._for_each_choice({}, finish_reason(self._answer), on_finish)
        if mode == "twice" or (self._asked and mode != "none"):
            events += sse(self._base | {"choices": [], "usage": final})
        return events + DONE

    def _usage_after(self, chunks: int) -> JsonObject | None:
        if self._answer.usage_mode != "cumulative":
            return None
        return usage(self._answer.tokens_after(chunks), len(self._choices))

    def _for_each_choice(self, delta: JsonObject, finish: str | None, used: JsonObject | None) -> bytes:
        return b"".join(self._chunk(index, delta, finish, used) for index in self._choices)

    def _chunk(self, index: int, delta: JsonObject, finish: str | None, used: JsonObject | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = self._base | {"choices": [choice]}
        if self._asked or used is not None:
            chunk["usage"] = used
        return sse(chunk)


FORMAT = Format("openai", read, render)
