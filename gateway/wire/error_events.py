"""An error told within a stream, and the end of that stream, as each format's own servers and clients have it.

Sources: the openai and anthropic Python packages (which of their events raise an APIError), the Responses API's
`error` event, google.rpc.Status in Gemini's streams, `finish_reason: ERROR` in Cohere's final events.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.errors import ObolError, body
from gateway.wire.framing import Framing

_DONE = b"data: [DONE]\n\n"
_SEQUENCE = re.compile(rb'"sequence_number":\s*(\d{1,9})')


def closing(
    format_name: str, dialect: str, framing: Framing, error: ObolError, request_id: str, sent: bytes, *, begun: bool
) -> bytes:
    """The error and the end of a stream whose last complete event is the end of `sent`; b"" where there is no way.

    `begun`: something stands before `sent`.
    """
    told = body(error, dialect, request_id)
    if framing.name == "array":
        return _array(told, sent, begun)
    if framing.name == "lines":
        return _json(_cohere_end(told, "event_type", "stream-end")) + b"\n"
    if framing.name != "sse":
        return b""
    if format_name in ("openai_chat", "openai_completions"):
        return _event(told) + _DONE
    if format_name == "openai_responses":
        return _event(_responses_error(told, sent), b"error")
    if format_name == "cohere_v2_chat":
        return _event(_cohere_end(told, "type", "message-end"), b"message-end")
    return _event(told, b"error" if dialect == "anthropic" else b"")


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _event(value: Any, name: bytes = b"") -> bytes:
    head = b"event: %b\n" % name if name else b""
    return b"%bdata: %b\n\n" % (head, _json(value))


def _responses_error(told: dict[str, Any], sent: bytes) -> dict[str, Any]:
    """The fields of the published event, and `error`, by which the openai package knows it for one."""
    error = told["error"]
    numbers = _SEQUENCE.findall(sent)
    fields = {"code": error["code"], "message": error["message"], "param": None}
    return {"type": "error", "sequence_number": int(numbers[-1]) + 1 if numbers else 0, **fields, **told}


def _cohere_end(told: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    """Its final event: in v1 the fields stand beside the kind, in v2 in `delta`."""
    reason = {"finish_reason": "ERROR", "error": told["error"]["message"]}
    if kind == "type":
        return {kind: name, "delta": reason, "obol": told["error"]}
    return {"is_finished": True, kind: name, **reason, "obol": told["error"]}


def _array(told: dict[str, Any], sent: bytes, begun: bool) -> bytes:
    """One more element and the end of the array."""
    before = sent.rstrip()[-1:]
    if before == b"]":  # it has ended already
        return b""
    if before in (b"[", b","):
        return _json(told) + b"]"
    return (b"," if before or begun else b"[") + _json(told) + b"]"
