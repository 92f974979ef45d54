"""OpenAI Responses. A stream names its events, numbers them, ends with response.completed and has no [DONE]."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from gateway.local.fake.answer import Answer, Prompt, Tokens
from gateway.local.fake.call import Call, JsonObject
from gateway.local.fake.reply import (
    MID_STREAM_MESSAGE,
    SSE,
    Format,
    Reply,
    content_texts,
    json_reply,
    last_user_texts,
    messages_field,
    sse,
    text_field,
    whole_field,
)


def read(call: Call) -> Prompt:
    fields = call.fields()
    given = fields.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else messages_field(fields, "input")
    instructions = fields.get("instructions")
    texts = [instructions] if isinstance(instructions, str) else []
    return Prompt(
        call=call,
        model=text_field(fields, "model"),
        texts=(*texts, *(text for message in messages for text in content_texts(message.get("content")))),
        user_texts=last_user_texts(messages),
        messages=len(messages) + len(texts),
        max_output_tokens=whole_field(fields, "max_output_tokens"),
        stream=fields.get("stream") is True,
        choices=1,
        fields=fields,
    )


def usage(tokens: Tokens) -> JsonObject:
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.cache_write},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.total,
    }


def render(answer: Answer) -> Reply:
    events = _Events(answer)
    if not answer.prompt.stream:
        return json_reply(events.final_response(), fingerprint=answer.fingerprint)
    return Reply(
        200,
        SSE,
        head=events.head(),
        deltas=events.deltas(),
        delta_count=answer.chunks,
        tail=events.tail(),
        error=events.failure(),
        stream=True,
    )


class _Events:
    """The events of one stream, and the response object they carry."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._item_id = f"msg_{answer.fingerprint[:48]}"
        self._place: JsonObject = {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def head(self) -> bytes:
        started = self._response("in_progress", [], None)
        item = self._item("in_progress", [])
        events: list[tuple[str, JsonObject]] = [
            ("response.created", {"response": started}),
            ("response.in_progress", {"response": started}),
            ("response.output_item.added", {"output_index": 0, "item": item}),
            ("response.content_part.added", self._place | {"part": self._part("")}),
        ]
        return b"".join(self._event(number, *event) for number, event in enumerate(events))

    def deltas(self) -> Iterator[bytes]:
        numbers = count(4)
        for text, tokens in self._answer.counted_deltas():
            fields = self._place | {"delta": text, "logprobs": []}
            event = self._event(next(numbers), "response.output_text.delta", fields)
            if self._answer.usage_mode == "cumulative":
                response = self._response("in_progress", [], usage(tokens))
                event += self._event(next(numbers), "response.in_progress", {"response": response})
            yield event

    def tail(self) -> bytes:
        text = self._answer.text()
        final = self.final_response()
        ending = (f"response.{final['status']}", {"response": final})
        events: list[tuple[str, JsonObject]] = [
            ("response.output_text.done", self._place | {"text": text, "logprobs": []}),
            ("response.content_part.done", self._place | {"part": self._part(text)}),
            ("response.output_item.done", {"output_index": 0, "item": final["output"][0]}),
            ending,
        ]
        if self._answer.usage_mode == "twice":
            events.append(ending)
        first = 4 + self._answer.chunks * (2 if self._answer.usage_mode == "cumulative" else 1)
        return b"".join(self._event(number, *event) for number, event in enumerate(events, start=first))

    def failure(self) -> bytes:
        number = 4 + self._answer.chunks
        error = {"code": "server_error", "message": MID_STREAM_MESSAGE}
        failed = self._response("failed", [], None) | {"error": error}
        said = self._event(number, "error", error | {"param": None})
        return said + self._event(number + 1, "response.failed", {"response": failed})

    def final_response(self) -> JsonObject:
        status = "incomplete" if self._answer.cut_short else "completed"
        used = None if self._answer.usage_mode == "none" else usage(self._answer.tokens)
        return self._response(status, [self._item(status, [self._part(self._answer.text())])], used)

    def _event(self, number: int, kind: str, fields: JsonObject) -> bytes:
        return sse({"type": kind, "sequence_number": number, **fields}, kind)

    def _item(self, status: str, content: list[JsonObject]) -> JsonObject:
        return {"id": self._item_id, "type": "message", "status": status, "content": content, "role": "assistant"}

    def _part(self, text: str) -> JsonObject:
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def _response(self, status: str, output: list[JsonObject], used: JsonObject | None) -> JsonObject:
        fields = self._answer.prompt.fields
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        echoed: dict[str, Any] = {
            name: fields.get(name, default)
            for name, default in (
                ("instructions", None),
                ("max_output_tokens", None),
                ("metadata", {}),
                ("parallel_tool_calls", True),
                ("previous_response_id", None),
                ("store", True),
                ("temperature", 1.0),
                ("tool_choice", "auto"),
                ("tools", []),
                ("top_p", 1.0),
                ("truncation", "disabled"),
            )
        }
        return {
            "id": f"resp_{self._answer.fingerprint[:48]}",
            "object": "response",
            "created_at": self._answer.created_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": reason,
            "model": self._answer.model,
            "output": output,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default" if output else "auto",
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "usage": used,
            "user": None,
            **echoed,
        }


FORMAT = Format("openai", read, render)
