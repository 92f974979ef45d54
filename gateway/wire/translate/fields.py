"""Reading a request member by member, so that none is left out in silence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from gateway.errors import ObolError

T = TypeVar("T")
_HUMP = re.compile(r"_([a-z0-9])")


def refusal(at: str, why: str) -> ObolError:
    """`at`, a field of the request, cannot be said in the provider's dialect."""
    return ObolError("forward_translation_not_supported", f"{at} cannot be translated: {why}", param=at)


def invalid(at: str, why: str) -> ObolError:
    return ObolError("invalid_request", f"{at} {why}", param=at)


class Fields:
    """One JSON object of the request. null is absent. `end` refuses, by its path, what was not taken.

    Raise ObolError `invalid_request` for a member of another type.
    """

    def __init__(self, value: Any, at: str = "", *, camel: bool = False) -> None:
        """`camel`: members may also be written in snake_case, as protobuf's JSON allows."""
        if not isinstance(value, dict):
            raise invalid(at or "the request body", "must be an object")
        self.at = at
        self._left = {name: member for name, member in value.items() if member is not None}
        self._camel = camel
        self._written: dict[str, str] = {}
        if camel:
            self._written = {_HUMP.sub(lambda hump: hump[1].upper(), name): name for name in self._left}
            for written in self._left.keys() - self._written.values():
                raise invalid(self.path(written), "is there twice, in two spellings")
            self._left = {name: self._left[written] for name, written in self._written.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def path(self, name: str) -> str:
        written = self._written.get(name, name) or '""'
        return f"{self.at}.{written}" if self.at else written

    def take(self, name: str) -> Any:
        """The member, whatever it is, or None."""
        return self._left.pop(name, None)

    def required(self, name: str, value: T | None) -> T:
        """`value`, which was taken as `name`. Raise ObolError where it is None."""
        if value is None:
            raise invalid(self.path(name), "is missing")
        return value

    def text(self, name: str) -> str | None:
        return self._typed(name, str, "must be a string")

    def required_text(self, name: str) -> str:
        return self.required(name, self.text(name))

    def flag(self, name: str) -> bool | None:
        return self._typed(name, bool, "must be true or false")

    def whole(self, name: str) -> int | None:
        value = self.number(name)
        if value is not None and value != int(value):
            raise invalid(self.path(name), "must be a whole number")
        return None if value is None else int(value)

    def number(self, name: str) -> float | int | None:
        value = self._left.pop(name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise invalid(self.path(name), "must be a number")
        return value

    def array(self, name: str) -> list[Any]:
        return self._typed(name, list, "must be an array") or []

    def texts(self, name: str) -> tuple[str, ...]:
        """Strings in an array, or one alone."""
        value = self._left.pop(name, None)
        listed = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise invalid(self.path(name), "must be a string or an array of strings")
        return tuple(listed)

    def object(self, name: str) -> dict[str, Any] | None:
        """An object that is passed on as it is (a schema)."""
        return self._typed(name, dict, "must be an object")

    def inner(self, name: str) -> Fields | None:
        """An object to be read in the same way."""
        value = self._left.pop(name, None)
        return None if value is None else Fields(value, self.path(name), camel=self._camel)

    def each(self, name: str) -> Iterator[Fields]:
        """The objects of an array."""
        at = self.path(name)
        for number, value in enumerate(self.array(name)):
            yield Fields(value, f"{at}[{number}]", camel=self._camel)

    def leave(self, *names: str) -> None:
        """What may be left out: it changes nothing that the model is told or what comes back."""
        for name in names:
            self._left.pop(name, None)

    def only(self, name: str, *allowed: Any) -> None:
        """A member that is left out where it has its usual value, and refused where it has another."""
        value = self._left.get(name)
        if any(value == one and type(value) is type(one) for one in allowed):
            del self._left[name]

    def refuse(self, name: str, why: str) -> ObolError:
        return refusal(self.path(name), why)

    def end(self, why: str = "the other dialect has nothing like it") -> None:
        """Refuse what is left."""
        for name in self._left:
            raise self.refuse(name, why)

    def _typed(self, name: str, kind: type[T], must: str) -> T | None:
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, kind):
            raise invalid(self.path(name), must)
        return value
