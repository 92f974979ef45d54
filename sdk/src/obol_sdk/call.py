"""A call of the API as a value, and methods that exist in both worlds.

A resource describes its calls once: a method decorated with `call` or `paged` returns a `Call`. On a resource of `Obol`
it is sent and its answer returned; on one of `AsyncObol` it is sent and its answer awaited. To a type checker the
first is `(...) -> Meter` and the second `(...) -> Awaitable[Meter]`, with the parameters of the description.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import wraps
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload
from urllib.parse import quote

import msgspec

from obol_sdk.pages import AsyncPage, Listed, Page

P = ParamSpec("P")
T = TypeVar("T")
Amount = Decimal | str | int
"""US dollars. A float is refused: it has no exact value in decimals."""


class Sync:
    """The world of `Obol`."""


class Async:
    """The world of `AsyncObol`."""


World = TypeVar("World", Sync, Async)
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call. `path` stands behind `/v1/`. `repeatable`: a second one does no more than the first."""

    method: Method
    path: str
    answer: type[T]
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    repeatable: bool = False

    def at(self, cursor: str) -> Call[T]:
        """The same for the page behind a cursor."""
        return replace(self, query={**(self.query or {}), "cursor": cursor})


class Sender(Protocol):
    """What a client is to its resources."""

    def send(self, call: Call[T]) -> Any: ...

    def send_paged(self, call: Call[Listed[T]]) -> Any: ...


class Resource(Generic[World]):
    """A group of calls, in one of the two worlds."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender


class call(Generic[P, T]):
    """Of a method that describes a call."""

    def __init__(self, describe: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, resource: Resource[Sync], owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, resource: Resource[Async], owner: type) -> Callable[P, Awaitable[T]]: ...

    def __get__(self, resource: Any, owner: type) -> Any:
        @wraps(self._describe)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return resource._sender.send(self._describe(resource, *args, **kwargs))

        return self if resource is None else method


class paged(Generic[P, T]):
    """Of a method that describes a call whose answer is a page. Iterating over the page goes on to the next ones."""

    def __init__(self, describe: Callable[Concatenate[Any, P], Call[Listed[T]]]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, resource: Resource[Sync], owner: type) -> Callable[P, Page[T]]: ...

    @overload
    def __get__(self, resource: Resource[Async], owner: type) -> Callable[P, Awaitable[AsyncPage[T]]]: ...

    def __get__(self, resource: Any, owner: type) -> Any:
        @wraps(self._describe)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return resource._sender.send_paged(self._describe(resource, *args, **kwargs))

        return self if resource is None else method


def get(path: str, answer: type[Any], asked: Mapping[str, str] | None = None) -> Call[Any]:
    """What is read can be read again."""
    return Call("GET", path, answer, query=asked, repeatable=True)


def place(*parts: str) -> str:
    """A path of parts, each percent-encoded. An empty one would name another call."""
    if not all(parts):
        raise ValueError("an id is empty")
    return "/".join(quote(part, safe="") for part in parts)


def query(**given: str | int | datetime | Mapping[str, str] | None) -> dict[str, str]:
    """Query parameters; None is left out, a mapping is a list of pairs in JSON."""
    return {name: _query_text(value) for name, value in given.items() if value is not None}


def _query_text(value: str | int | datetime | Mapping[str, str]) -> str:
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, Mapping):
        return msgspec.json.encode(list(value.items())).decode()
    return str(value)


def body(**given: Any) -> dict[str, Any]:
    """A JSON body. What is UNSET is left out; None stays, and is null."""
    return {name: value for name, value in given.items() if value is not msgspec.UNSET}


def present(**given: Any) -> dict[str, Any]:
    """A JSON body of what is neither None nor UNSET."""
    return {name: value for name, value in given.items() if value is not None and value is not msgspec.UNSET}


def moment(value: datetime | str) -> str:
    """ISO 8601. A datetime must know its offset; its offset is the day's in reports."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a datetime needs a time zone: datetime.now(timezone.utc)")
        return value.isoformat()
    return value


def amount(value: Amount) -> str:
    """A decimal text."""
    if isinstance(value, bool) or not isinstance(value, Decimal | str | int):
        raise TypeError(f"an amount is a Decimal, a text or an int, not {type(value).__name__}")
    return format(value, "f") if isinstance(value, Decimal) else str(value)
