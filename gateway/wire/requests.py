"""Reading requests: the JSON body, the few multipart fields that matter, the model, and the prompt as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec

from gateway.errors import ObolError
from gateway.wire.fields import Json

_BOM = b"\xef\xbb\xbf"
_DEPLOYMENT = re.compile(r"/deployments/([^/?]+)/")
_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,200})', re.IGNORECASE)
_FIELD_NAME = re.compile(rb'name="([^"]{1,100})"')
_FORM_HEADER_MAX_BYTES = 4_096
_FORM_VALUE_MAX_BYTES = 64 * 1024

# Members of messages that are not prompt text: names, ids, and media that tokenizers never see as text.
_NOT_TEXT = frozenset(
    {"type", "role", "id", "call_id", "tool_call_id", "tool_use_id", "cache_control", "signature", "thoughtSignature"}
    | {"encrypted_content", "image_url", "input_audio", "file", "file_data", "file_id", "source", "inlineData"}
    | {"inline_data", "fileData", "file_uri", "audio", "status", "detail"}
)

T = TypeVar("T")


def decode_body(body: bytes, of: type[T]) -> T:
    """A JSON object body as `of`: a Struct of the members wanted, or a dict. Raise ObolError `invalid_request`."""
    try:
        return msgspec.json.decode(body.removeprefix(_BOM), type=of)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ObolError("invalid_request", f"the request body is not a JSON object: {error}", param="body") from None


def loads(body: bytes) -> Json:
    """The whole body as an object, {} if it is not one."""
    try:
        return msgspec.json.decode(body.removeprefix(_BOM), type=Json)
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


def is_form(body: bytes) -> bool:
    """Whether the body is multipart/form-data, told by its first bytes."""
    return body.startswith(b"--")


def form_fields(body: bytes, content_type: str = "") -> dict[str, str]:
    """The text fields of a multipart body; files and values above 64 KiB are left out.

    Raise ObolError `invalid_request` for a field given twice, and where the boundary that begins the body is not
    that of `content_type` (unless it is empty): the provider might then read other fields than these.
    """
    boundary = body[: body.find(b"\r\n")] if b"\r\n" in body[:_FORM_HEADER_MAX_BYTES] else b""
    declared = _BOUNDARY.search(content_type)
    if content_type and (declared is None or b"--" + declared.group(1).encode() != boundary):
        raise ObolError(
            "invalid_request", "the form does not begin with the boundary of its content-type", param="body"
        )
    fields: dict[str, str] = {}
    for head, value in _form_parts(body, boundary):
        found = _FIELD_NAME.search(head)
        if found is None or b"filename=" in head:
            continue
        name = found.group(1).decode("utf-8", "replace")
        if name in fields and not name.endswith("[]"):
            raise ObolError("invalid_request", f"the form field {name} is given twice", param=name)
        fields[name] = value.decode("utf-8", "replace")
    return fields


def _form_parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(boundary) < 3:
        return
    start = len(boundary) + 2
    while (end := body.find(b"\r\n" + boundary, start)) >= 0:
        split = body.find(b"\r\n\r\n", start, min(end, start + _FORM_HEADER_MAX_BYTES))
        if split >= 0 and end - split - 4 <= _FORM_VALUE_MAX_BYTES:
            yield body[start:split], body[split + 4 : end]
        start = end + len(boundary) + 4


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
