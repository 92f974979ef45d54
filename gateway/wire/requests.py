"""Reading requests: the JSON body, the few multipart fields that matter, the model, and the prompt as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec

from gateway.errors import ObolError
from gateway.wire.fields import MESSAGE_MAX_CHARACTERS, Json, decoder

BOM = b"\xef\xbb\xbf"
_DEPLOYMENT = re.compile(r"/deployments/([^/?]+)/")
_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,200})', re.IGNORECASE)
_DISPOSITION = re.compile(rb"(?:\A|\r\n)content-disposition:[ \t]*form-data([^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb";[ \t]*(name|filename)[ \t]*\*?[ \t]*=", re.IGNORECASE)
_FIELD_NAME = re.compile(rb';[ \t]*name="([^"\\]{1,100})"')
_FORM_HEADER_MAX_BYTES = 4_096
_FORM_VALUE_MAX_BYTES = 64 * 1024
_FORM_PARTS_MAX = 1_000

# Members of messages that are not prompt text: names, ids, and media that tokenizers never see as text.
_NOT_TEXT = frozenset(
    {"type", "role", "id", "call_id", "tool_call_id", "tool_use_id", "cache_control", "signature", "thoughtSignature"}
    | {"encrypted_content", "image_url", "input_audio", "file", "file_data", "file_id", "source", "inlineData"}
    | {"inline_data", "fileData", "file_uri", "audio", "video_url", "audio_url", "status", "detail"}
)

T = TypeVar("T")
P = TypeVar("P")


def decode_body(body: bytes, of: type[T]) -> T:
    """A JSON object body as `of`: a Struct of the members wanted, or a dict. Raise ObolError `invalid_request`."""
    try:
        return msgspec.json.decode(body.removeprefix(BOM), type=of)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = str(error)[:MESSAGE_MAX_CHARACTERS]  # it tells the path to the fault, which may be a thousand levels deep
        raise ObolError("invalid_request", f"the request body is not a JSON object: {why}", param="body") from None


def decode_outlined(body: bytes, outlined: Callable[..., T], plain: type[P]) -> T | P:
    """As `decode_body`: as `outlined`, with the outline of the prompt, or as `plain` where that has another shape."""
    try:
        found: T = decoder(outlined).decode(body.removeprefix(BOM))
        return found
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode_body(body, plain)


def loads(body: bytes) -> Json:
    """The whole body as an object, {} if it is not one."""
    try:
        return msgspec.json.decode(body.removeprefix(BOM), type=Json)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def require_model(model: Any, path: str = "") -> str:
    """The model asked for: the body's, or the deployment named in an Azure path. Raise `forward_model_invalid`."""
    if model is None and (deployment := _DEPLOYMENT.search(path)):
        return unquote(deployment.group(1))
    if model is None:
        raise ObolError("forward_model_invalid", "the field model is missing from the request body", param="model")
    if not isinstance(model, str) or not model:
        raise ObolError("forward_model_invalid", "the field model must be a non-empty string", param="model")
    return model


def optional_model(model: Any) -> str | None:
    """The model asked for, where the API has a default. Raise `forward_model_invalid` if it is no name."""
    return None if model is None else require_model(model)


def uncollectable(member: str) -> ObolError:
    """The refusal of a call whose answer is fetched later, by a call of another kind that no meter would see."""
    return ObolError(
        "invalid_request",
        f"{member} asks for an answer that is delivered outside of this call, so it could not be metered",
        param=member,
    )


def is_form(body: bytes) -> bool:
    """Whether the body is multipart/form-data, told by its first bytes."""
    return body.startswith(b"--")


def form_fields(body: bytes, content_type: str = "") -> dict[str, str]:
    """The text fields of a multipart body; files and values above 64 KiB are left out.

    Raise ObolError `invalid_request` for a field given twice and, unless `content_type` is empty, where the boundary
    that begins the body is not its own or the head of a part leaves room for two readings: the provider might then read
    other fields than these.
    """
    boundary = body[: body.find(b"\r\n")] if b"\r\n" in body[:_FORM_HEADER_MAX_BYTES] else b""
    declared = _BOUNDARY.search(content_type)
    if content_type and (declared is None or b"--" + declared.group(1).encode() != boundary):
        raise ObolError(
            "invalid_request", "the form does not begin with the boundary of its content-type", param="body"
        )
    fields: dict[str, str] = {}
    for head, start, end in _form_parts(body, boundary):
        part = _part(head)
        if part is None and content_type:
            raise ObolError("invalid_request", "a part of the form does not tell its name in quotes", param="body")
        if part is None or part[1] or end - start > _FORM_VALUE_MAX_BYTES:
            continue
        name = part[0].decode("utf-8", "replace")
        if name in fields and not name.endswith("[]"):
            raise ObolError("invalid_request", f"the form field {name} is given twice", param=name)
        fields[name] = body[start:end].decode("utf-8", "replace")
    return fields


def form_files(body: bytes) -> list[tuple[int, int]]:
    """Where the files of a multipart body start and end in it."""
    boundary = body[: body.find(b"\r\n")] if b"\r\n" in body[:_FORM_HEADER_MAX_BYTES] else b""
    parts = ((_part(head), start, end) for head, start, end in _form_parts(body, boundary))
    return [(start, end) for part, start, end in parts if part is not None and part[1]]


def form_value_span(body: bytes, name: str) -> tuple[int, int] | None:
    """Where the value of a text field of a multipart body starts and ends in it."""
    boundary = body[: body.find(b"\r\n")] if b"\r\n" in body[:_FORM_HEADER_MAX_BYTES] else b""
    for head, start, end in _form_parts(body, boundary):
        if _part(head) == (name.encode(), False):
            return start, end
    return None


def _form_parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The head of each part, and where its value starts and ends. b"": it does not end in time. Raise ObolError."""
    if len(boundary) < 3:
        return
    start, number = len(boundary) + 2, 0
    while (end := body.find(b"\r\n" + boundary, start)) >= 0:
        number += 1
        if number > _FORM_PARTS_MAX:
            raise ObolError("invalid_request", f"the form has more than {_FORM_PARTS_MAX:,} parts", param="body")
        split = body.find(b"\r\n\r\n", start, min(end, start + _FORM_HEADER_MAX_BYTES))
        yield (body[start:split], split + 4, end) if split >= 0 else (b"", end, end)
        start = end + len(boundary) + 4


def _part(head: bytes) -> tuple[bytes, bool] | None:
    """Name of a part, and whether it is a file; None where its head does not tell, or tells it twice."""
    dispositions = _DISPOSITION.findall(head)
    if len(dispositions) != 1:
        return None
    parameters = [parameter.lower() for parameter in _PARAMETER.findall(dispositions[0])]
    name = _FIELD_NAME.search(dispositions[0])
    return (name.group(1), b"filename" in parameters) if name and parameters.count(b"name") == 1 else None


def prompt_text(*values: Any) -> str:
    """All text in messages, contents or inputs, one piece a line (see `text_pieces`)."""
    return "\n".join(piece for value in values for piece in text_pieces(value))


def text_pieces(value: Any) -> Iterator[str]:
    """The non-empty strings in a message, content or input, in order; images, audio and files are left out."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            if name not in _NOT_TEXT:
                yield from text_pieces(member)
    elif isinstance(value, list):
        for member in value:
            yield from text_pieces(member)


def as_json(value: Any) -> str:
    """Tools and schemas as providers put them into the prompt: about as many tokens as their JSON."""
    return msgspec.json.encode(value).decode() if value else ""


def token_ids(value: Any) -> int:
    """How many tokens there are in a prompt that comes as lists of token numbers."""
    if isinstance(value, list):
        return sum(1 if type(one) is int else token_ids(one) for one in value if isinstance(one, int | list))
    return 0
