"""The table that the API is made from: one `Operation` a call, read by routing, validation and the OpenAPI document.

A resource lists its operations; a handler takes a `Call` and gives the answer as a struct. The dispatcher finds the
merchant, converts body and query into the structs that the row names (errors name the field) and encodes the answer.
Amounts are `Money` in both directions, so that no handler formats or parses one.

In a body, null is the same as absent unless the field's type takes None; what no struct knows is ignored, for the
published clients send more than they document. In a query, an empty value is absent.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from types import NoneType
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.api import reading
from gateway.api.context import ApiContext
from gateway.billing.principals import Merchant
from gateway.core.money import EXACT_LIMIT, format_nano, parse_nano
from gateway.errors import ObolError

NUMBER_DIGITS_MAX = 30
_FINEST = Decimal(10) ** -(NUMBER_DIGITS_MAX + 1)
"""Stands for whatever is finer: no microsecond, and too fine for an amount. Written out, 1e-999999 is a megabyte."""
NESTING_MAX = 50

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=reading.TEXT_MAX_CHARACTERS)]
"""A name or an id. Printable, as all text in a body or query must be."""
Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""ISO-8601 in UTC, as `responses.iso` writes it."""


class Money:
    """An amount in nano-dollars; in JSON a decimal string in dollars with ten places. Read from text or a number."""

    __slots__ = ("nano",)

    def __init__(self, nano: int) -> None:
        self.nano = nano

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.nano == self.nano

    def __hash__(self) -> int:
        return hash(self.nano)

    def __repr__(self) -> str:
        return f"Money({format_nano(self.nano)})"


class Nothing(msgspec.Struct):
    """No body, or no query: whatever is sent is ignored."""


class Page(msgspec.Struct):
    """Of a list: how many items, and behind which place. `paging.window` reads both."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    cursor: Annotated[str, msgspec.Meta(max_length=2_000)] | None = None


class Deleted(msgspec.Struct):
    """What both vocabularies expect after a DELETE."""

    id: str
    success: bool = True
    deleted: bool = True


Body = TypeVar("Body", bound=msgspec.Struct)
Query = TypeVar("Query", bound=msgspec.Struct)


@dataclass(slots=True)
class Call(Generic[Body, Query]):
    """One call of an operation. `merchant` is not there where the operation is public."""

    request: web.Request
    body: Body
    query: Query
    _merchant: Merchant | None = None

    @property
    def merchant(self) -> Merchant:
        assert self._merchant is not None, "a public operation has no merchant"
        return self._merchant

    def path_id(self, missing: str = "not_found") -> str:
        """The path's `{id}`; what cannot be anybody's raises the ObolError `missing`."""
        return reading.path_id(self.request, missing)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the API.

    `path` may hold `{id}` and others; `aliases` are paths at which older clients look for the same. `answer`: the type
    of the JSON answered with `status`, or None where a handler gives a whole `web.Response`. `errors`: codes of
    gateway/errors.py beyond those that every operation may answer with (invalid_request, unauthorized, 5xx).
    `public`: anybody may call.
    """

    method: str
    path: str
    handler: Callable[[Call[Any, Any]], Awaitable[Any]]
    summary: str
    tag: str
    body: type[msgspec.Struct] = Nothing
    query: type[msgspec.Struct] = Nothing
    answer: Any = None
    status: int = 200
    errors: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    public: bool = False
    authorize: Callable[[web.Request], Awaitable[Merchant]] | None = field(default=None, compare=False)
    """In the place of the merchant's secret key, where something else may call."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.aliases)


def routes(context: ApiContext, operations: list[Operation]) -> list[web.RouteDef]:
    """The operations at all their paths, for aiohttp."""
    return [
        # Where GET is answered, HEAD is, too.
        web.get(path, handler) if each.method == "GET" else web.route(each.method, path, handler)
        for each in operations
        for handler in [_handler(context, each)]
        for path in each.paths
    ]


def _handler(context: ApiContext, operation: Operation) -> Handler:
    authorize = operation.authorize or context.merchant

    async def handle(request: web.Request) -> web.StreamResponse:
        merchant = None if operation.public else await authorize(request)
        given = {} if operation.body is Nothing else await reading.json_object(request)
        body = convert(given, operation.body)
        query = convert({key: value for key, value in request.query.items() if value}, operation.query, text=True)
        answer = await operation.handler(Call(request, body, query, merchant))
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(body=encode(answer), status=operation.status, content_type="application/json")

    return handle


def encode(answer: Any) -> bytes:
    return msgspec.json.encode(answer, enc_hook=_encode_custom)


def convert(given: Mapping[str, Any], into: type[Body], *, text: bool = False) -> Body:
    """`given`, parsed JSON, as the struct. `text`: all values came as text, as in a query. Raise ObolError
    `invalid_request` naming the field."""
    known, absent = _known(into), _not_nullable(into)
    values = {
        key: _plain(value, key)
        for key, value in given.items()
        if key in known and (value is not None or key not in absent)
    }
    try:
        return msgspec.convert(values, into, strict=not text, dec_hook=_decode_custom)
    except msgspec.ValidationError as error:
        raise _named(str(error), into) from None


def agreed(given: msgspec.Struct, *fields: str) -> reading.Named | None:
    """The value that `fields`, names of the same thing over the eras, agree on. An empty string is absent."""
    return reading.one_of({name: getattr(given, name) for name in fields}, fields)


def required(given: msgspec.Struct, *fields: str) -> reading.Named:
    """The same of something that has to be there under one of the names. The first one is asked for."""
    found = agreed(given, *fields)
    if found is None:
        raise reading.invalid(fields[0], "is required")
    return found


@cache
def _known(into: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(each.encode_name for each in msgspec.structs.fields(into))


@cache
def _not_nullable(into: type[msgspec.Struct]) -> frozenset[str]:
    """Fields that may be left out and whose type does not take None."""
    hints = typing.get_type_hints(into)
    optional = (each for each in msgspec.structs.fields(into) if not each.required)
    return frozenset(each.encode_name for each in optional if NoneType not in typing.get_args(hints[each.name]))


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` with whole numbers as int (12.0 too) and its text looked at: printable, as PostgreSQL can hold it.
    Values of metadata are free text, which may have lines."""
    if isinstance(value, str):
        if not value.isprintable() and (not where.startswith("metadata.") or _UNSTORABLE.search(value)):
            raise reading.invalid(where, "must be printable text")
        return value
    if isinstance(value, Decimal):
        if value and value.adjusted() > NUMBER_DIGITS_MAX:
            raise reading.invalid(where, "is a number out of range")
        if value and value.adjusted() < -NUMBER_DIGITS_MAX:
            if where.startswith("metadata."):  # which is shown as it was given
                raise reading.invalid(where, "is a number out of range")
            return _FINEST.copy_sign(value)
        return int(value) if value == value.to_integral_value() else value
    if depth > NESTING_MAX:
        raise reading.invalid(where.partition(".")[0].partition("[")[0], f"is nested more than {NESTING_MAX} deep")
    if isinstance(value, dict):
        for key in value:
            _plain(key, where)
        return {key: _plain(each, f"{where}.{key}", depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, f"{where}[{index}]", depth + 1) for index, each in enumerate(value)]
    return value


def _decode_custom(kind: type, value: Any) -> Any:
    if kind is Decimal and isinstance(value, int | Decimal):
        return Decimal(value)
    if kind is not Money:
        raise NotImplementedError(kind)  # says to msgspec: a type of which this hook knows nothing
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise ValueError('must be an amount in dollars, such as "25.00"')
    written = value if isinstance(value, str) else format(value, "f")
    try:
        nano = parse_nano(written)
    except ValueError:
        raise ValueError('must be an amount in dollars with at most 9 decimal places, such as "25.00"') from None
    if nano < 0:
        raise ValueError("must not be negative")
    if nano >= EXACT_LIMIT:
        raise ValueError("is more than can be counted to the nano-dollar")
    return Money(nano)


def _encode_custom(value: Any) -> Any:
    if isinstance(value, Money):
        return format_nano(value.nano)
    raise NotImplementedError(type(value))  # likewise


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<at>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_WORDS = {
    "`str`": "text",
    "`int`": "a whole number",
    "`array`": "a list",
    "`object`": "an object",
    "`bool`": "true or false",
}


def _named(message: str, into: type[msgspec.Struct]) -> ObolError:
    """msgspec's words as ours: "Expected `int`, got `str` - at `$.tiers[0].start`"."""
    match = _PLACE.match(message)
    assert match is not None
    what, at = match["what"], (match["at"] or "$").removeprefix("$").removeprefix(".")
    missing = _MISSING.match(what)
    if missing:
        return reading.invalid(f"{at}.{missing[1]}".removeprefix("."), "is required")
    what = what.replace("int | null", "int").replace("str | null", "str")
    for word, plain in _WORDS.items():
        what = what.replace(word, plain)
    what = what.replace("`", "")
    if what.startswith("Expected "):
        what = f"must be {what.removeprefix('Expected ').replace(', got null', ' (null was sent)')}"
    elif what.startswith("Invalid enum value"):
        what = f"cannot be {what.removeprefix('Invalid enum value ')}{_instead(into, at)}"
    return reading.invalid(at or "the body", what)


def _instead(into: type[msgspec.Struct], field: str) -> str:
    """The values that a field of the struct itself may have."""
    hint = typing.get_type_hints(into).get(field)
    options = [each for part in (hint, *typing.get_args(hint)) for each in _literals(part)]
    return f"; it is one of {', '.join(map(str, options))}" if options else ""


def _literals(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
