"""Reading single fields of what providers send, forgivingly: nulls, floats for integers, wrong types.

Every function returns None for what it cannot use; none raises.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from gateway.core.usage import Usage

Json = dict[str, Any]
T = TypeVar("T")

COUNT_MAX = 10**12
"""Above this a count is taken for nonsense: no response holds a trillion tokens."""
MESSAGE_MAX_CHARACTERS = 500


def count(value: Any) -> int | None:
    """A non-negative integer, also when sent as 12.0."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= COUNT_MAX else None  # type(): a bool is no count


def count_asked(value: Any) -> int | None:
    """A count in a request, also where it is text: Google takes "8" for 8, and so do many that copied OpenAI."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return count(value)


def microseconds(seconds: Any) -> int | None:
    """Microseconds of a duration in seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= COUNT_MAX:
        return None
    return round(seconds * 1_000_000)


def mapping(value: Any) -> Json:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """`value` if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str | None:
    """`value` if it is a string with something in it."""
    return value if isinstance(value, str) and value else None


def first(*values: T | None) -> T | None:
    """The first value that is not None: a reported zero counts, a missing field does not."""
    for value in values:
        if value is not None:
            return value
    return None


def largest(values: Iterable[Any]) -> int | None:
    """The largest count among those asked for: where a limit has two names, the larger one bounds what can be used."""
    return max((number for value in values if (number := count_asked(value)) is not None), default=None)


def decode(data: bytes, of: Callable[..., T]) -> T | None:
    """`data` as JSON of the Struct `of`, None if it is not."""
    try:
        found: T = decoder(of).decode(data)
        return found
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


@lru_cache(maxsize=64)
def decoder(of: Hashable) -> msgspec.json.Decoder[Any]:
    """Made once a Struct: making one costs more than decoding a small body."""
    return msgspec.json.Decoder(cast(Any, of))


def failure(error: Any) -> str | None:
    """The message of an error in any of the shapes providers use; None where there is no error."""
    if error is None or error is False or error == "" or error == {}:
        return None
    if isinstance(error, list):
        error = error[0] if error else ""
    if isinstance(error, dict):
        error = first(*(text(error.get(name)) for name in ("message", "detail", "error", "code"))) or error
    return (error if isinstance(error, str) else str(error))[:MESSAGE_MAX_CHARACTERS] or "error"


_WHOLES = (
    ("cached_input_tokens", "input_tokens"),
    ("cache_write_1h_tokens", "cache_write_tokens"),
    ("input_audio_tokens", "input_tokens"),
    ("input_image_tokens", "input_tokens"),
    ("input_video_tokens", "input_tokens"),
    ("cached_audio_tokens", "cached_input_tokens"),
    ("cached_image_tokens", "cached_input_tokens"),
    ("reasoning_tokens", "output_tokens"),
    ("output_audio_tokens", "output_tokens"),
    ("output_image_tokens", "output_tokens"),
)


def partition(usage: Usage) -> Usage:
    """`usage` with every part no larger than its whole: some providers count their parts apart."""
    parts: dict[str, int] = {}
    whole, written = usage.input_tokens, usage.cache_write_tokens
    if whole is not None and written and written > (room := max(0, whole - (usage.cached_input_tokens or 0))):
        parts["cache_write_tokens"] = room
    for name, of in _WHOLES:
        part = getattr(usage, name)
        if part:
            limit = parts.get(of, getattr(usage, of))
            if limit is not None and part > limit:
                parts[name] = limit
    return replace(usage, **parts) if parts else usage
