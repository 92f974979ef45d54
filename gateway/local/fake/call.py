"""One request to the fake, as a value, and the error with which it is refused."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

import orjson

JsonObject = dict[str, Any]

DECODED_BODY_MAX_BYTES = 64 * 1024 * 1024
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


class FakeError(Exception):
    """A refusal, said in the shape of the format's provider. `param` names the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class Call:
    """`headers` has lower-case names; `query` the last value of each name; `body` the bytes as sent."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    fingerprint: str
    """Hex digest of method, path and body: what every id is made from."""
    path_values: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> JsonObject:
        """The body's fields: a JSON object, or the text fields of a form. FakeError 400 if neither."""
        if self.headers.get("content-type", "").startswith("multipart/form-data"):
            return {part.name: part.data.decode("utf-8", "replace") for part in self.parts() if part.filename is None}
        try:
            value = orjson.loads(decode_body(self.body, self.headers.get("content-encoding", "")))
        except orjson.JSONDecodeError as error:
            raise FakeError(400, f"The body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise FakeError(400, "The body is not a JSON object")
        return value

    def parts(self) -> list[FormPart]:
        """The parts of a multipart/form-data body, in order. FakeError 400 if it is not one."""
        return _form_parts(self.body, self.headers.get("content-type", ""))


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part of a form; `filename` is None for a text field."""

    name: str
    filename: str | None
    data: bytes


def decode_body(body: bytes, encoding: str) -> bytes:
    """`body` without its content encoding (gzip, deflate or none). FakeError 400 on any other, or over 64 MiB."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise FakeError(400, f"The content-encoding {encoding!r} is not one of gzip, deflate, identity")
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        decoded = inflater.decompress(body, DECODED_BODY_MAX_BYTES)
    except zlib.error as error:
        raise FakeError(400, f"The body is not {encoding}: {error}") from None
    if inflater.unconsumed_tail:
        raise FakeError(413, f"The body is larger than {DECODED_BODY_MAX_BYTES} bytes when decoded")
    return decoded


def _form_parts(body: bytes, content_type: str) -> list[FormPart]:
    boundary = _parameter(content_type, "boundary", header="content-type")
    if not boundary:
        raise FakeError(400, "The content-type names no multipart boundary")
    sections = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:-1]
    return [_form_part(section.removeprefix(b"\r\n")) for section in sections]


def _form_part(section: bytes) -> FormPart:
    head, separator, data = section.partition(b"\r\n\r\n")
    if not separator:
        raise FakeError(400, "A part of the form has no header")
    lines = head.decode("utf-8", "replace").split("\r\n")
    found = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("content-disposition:")]
    disposition = found[0] if found else ""
    name = _parameter(disposition, "name", header="content-disposition")
    if name is None:
        raise FakeError(400, "A part of the form has no name")
    return FormPart(name, _parameter(disposition, "filename", header="content-disposition"), data)


def _parameter(value: str, name: str, *, header: str) -> str | None:
    message = Message()
    message[header] = value
    parameter = message.get_param(name, header=header)
    return parameter if isinstance(parameter, str) else None
