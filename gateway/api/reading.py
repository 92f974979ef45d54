"""What comes in: JSON bodies, path and query parameters, checked field by field.

JSON numbers with a fraction are read as Decimal, so that no amount and no duration passes through a float.
Text must be printable: that also keeps out what PostgreSQL cannot hold (NUL, lone surrogates).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qs

from aiohttp import hdrs, web

from gateway.core.money import EXACT_LIMIT
from gateway.errors import ObolError

BODY_MAX_BYTES = 512 * 1024
FORM_FIELDS_MAX = 20
VALUES_MAX = 10_000
"""Values of one body, counted roughly and in no time: each takes microseconds of the loop."""
TEXT_MAX_CHARACTERS = 255
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_MICRO = Decimal("0.000001")
# Wide enough for any duration below the limit at microseconds.
_EXACT = Context(prec=40)


class Named(NamedTuple):
    """A value and the field it was given in, for errors."""

    field: str
    value: str


def invalid(field: str, what: str) -> ObolError:
    return ObolError("invalid_request", f"{field} {what}", param=field)


async def json_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; {} for an empty one. Raise ObolError 400 or 413."""
    body = await raw(request)
    return parse(body) if body.strip() else {}


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object whose fractions are Decimal. Raise ObolError `invalid_request` saying where it is not one."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES_MAX:
        raise ObolError("invalid_request", f"the body has more than {VALUES_MAX} values")
    try:
        value = json.loads(body.decode("utf-8"), parse_float=Decimal, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ObolError("invalid_request", f"the body is not UTF-8 at byte {error.start}") from None
    except ArithmeticError:
        raise ObolError("invalid_request", "the body is not usable JSON: a number is out of range") from None
    except (ValueError, RecursionError) as error:
        raise ObolError("invalid_request", f"the body is not usable JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ObolError("invalid_request", "the body must be a JSON object")
    return value


async def raw(request: web.Request) -> bytes:
    """The body, whatever it is. Raise ObolError `body_too_large`."""
    body = bytearray()
    if (request.content_length or 0) <= BODY_MAX_BYTES:
        if hdrs.EXPECT in request.headers and not request.content.is_eof() and request.transport is not None:
            request.transport.write(CONTINUE)
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > BODY_MAX_BYTES:
                break
        else:
            return bytes(body)
    raise ObolError("body_too_large", f"the body is longer than {BODY_MAX_BYTES} bytes")


async def form(request: web.Request) -> dict[str, str]:
    """The fields of a form that a page sent, the first of each name. Raise ObolError 400 or 413."""
    body = await raw(request)
    try:
        found = parse_qs(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=FORM_FIELDS_MAX)
    except ValueError:
        raise ObolError("invalid_request", "the form is not usable") from None
    return {name: values[0] for name, values in found.items()}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def text(values: Mapping[str, Any], field: str, max_characters: int = TEXT_MAX_CHARACTERS) -> str | None:
    """A printable string of 1 to `max_characters`; None where the field is absent or null."""
    value = values.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= max_characters or not value.isprintable():
        raise invalid(field, f"must be a string of 1 to {max_characters} printable characters")
    return value


def required_text(values: Mapping[str, Any], field: str) -> str:
    value = text(values, field)
    if value is None:
        raise invalid(field, "is required")
    return value


def one_of(values: Mapping[str, Any], fields: Sequence[str]) -> Named | None:
    """The value that `fields`, names of the same thing over the eras, agree on. An empty string is absent."""
    found: Named | None = None
    for field in fields:
        if values.get(field) in (None, ""):
            continue
        given = Named(field, required_text(values, field))
        if found is not None and found.value != given.value:
            raise invalid(field, f"differs from {found.field}; send one of them")
        found = found or given
    return found


def microseconds(value: Any, field: str) -> int | None:
    """Seconds from 0 as microseconds, rounded half up from the number's decimal text; None for None."""
    if value is None:
        return None
    rounded = _number(value, field, EXACT_LIMIT // 1_000_000).quantize(_MICRO, ROUND_HALF_UP, _EXACT)
    return int(rounded.scaleb(6, _EXACT))


def _number(value: Any, field: str, limit: int) -> Decimal:
    """The limits are compared before anything is made of the number: 1e999999999 must cost nothing."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise invalid(field, "must be a number")
    number = Decimal(value)
    if number < 0:
        raise invalid(field, "must not be negative")
    if number > limit:
        raise invalid(field, f"must be at most {limit}")
    return number


def path_id(request: web.Request, missing: str = "not_found") -> str:
    """The path's `{id}`. What cannot be anybody's id raises the ObolError `missing`."""
    value = request.match_info["id"]
    if not 1 <= len(value) <= TEXT_MAX_CHARACTERS or not value.isprintable():
        raise ObolError(missing, "there is nothing with this id", param="id")
    return value
