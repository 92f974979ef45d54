"""A usage written as text: "input=1000,cached=500,output=200"."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from gateway.core.usage import Usage

_SHORT = {"cached": "cached_input_tokens", "characters": "input_characters", "seconds": "input_us"}
_SECONDS = {"input_seconds": "input_us", "output_seconds": "output_us", "seconds": "input_us"}
_WORDS = ("image_quality", "image_size")
COUNT_MAX = 10**12
_WHOLES = {
    "input_tokens": (
        "cached_input_tokens",
        "cache_write_tokens",
        "input_audio_tokens",
        "input_image_tokens",
        "input_video_tokens",
    ),
    "cached_input_tokens": ("cached_audio_tokens", "cached_image_tokens"),
    "cache_write_tokens": ("cache_write_1h_tokens",),
    "output_tokens": ("reasoning_tokens", "output_audio_tokens", "output_image_tokens"),
}


def names() -> list[str]:
    """What may be counted."""
    fields = (name for name in Usage.__struct_fields__ if name not in ("extra", "input_us", "output_us"))
    return sorted({name.removesuffix("_tokens") for name in fields} | _SHORT.keys() | _SECONDS.keys())


def read_usage(text: str) -> Usage:
    """Raise ValueError naming the part that is not usable."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        field = _field(name)
        if not equals or field is None:
            raise ValueError(f"{part.strip()!r} is no name=count; the names are {', '.join(names())}")
        if field in values:
            raise ValueError(f"{name} is given twice")
        values[field] = _value(name, field, value)
    _check_parts(values)
    return Usage(**values)


def _field(name: str) -> str | None:
    known = frozenset(Usage.__struct_fields__) - {"extra"}
    candidates = (_SHORT.get(name), _SECONDS.get(name), name, f"{name}_tokens")
    return next((each for each in candidates if each in known), None)


def _value(name: str, field: str, value: str) -> Any:
    if field in _WORDS:
        return value.lower()
    try:
        number = Decimal(value) * (1_000_000 if name in _SECONDS else 1)
    except InvalidOperation:
        number = Decimal(-1)
    if not number.is_finite() or not 0 <= number <= COUNT_MAX or number != number.to_integral_value():
        raise ValueError(f"{name}={value} is not a count")
    return int(number)


def _check_parts(values: dict[str, Any]) -> None:
    for whole, parts in _WHOLES.items():
        given = {part: values[part] for part in parts if part in values}
        if given and values.get(whole, 0) < max(given.values()):
            raise ValueError(f"{', '.join(given)} is a part of {whole}, so {whole} is at least as much")
