"""The caller's own key-value pairs on a request, from its three places, checked. Pure.

Merge rule, the more specific place wins: the query parameter `metadata`, then the header `x-lava-metadata`
(both a JSON object), then each header `X-Lava-Metadata-<Name>` (one pair; its key is the name in lower case with
dashes as underscores). The limits hold for the merged pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.errors import ObolError

MAX_PAIRS = 100
MAX_CHARACTERS = 255
MAX_TEXT_BYTES = 64 * 1024

HEADER = "x-lava-metadata"
_PAIR_HEADER_PREFIX = HEADER + "-"
_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
_OBJECT_DECODER = msgspec.json.Decoder(dict[str, Any])


def parse(headers: Iterable[tuple[str, str]], query_text: str | None = None) -> dict[str, str]:
    """The metadata of a gateway request: {key: value}, empty when there is none.

    `headers`: name and value pairs, names in any case. `query_text`: `Target.metadata`.
    Raise ObolError `metadata_invalid` naming the key.
    """
    json_header = None
    pairs: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        if not name.startswith(HEADER):
            continue
        if name == HEADER:
            if json_header is not None:
                raise _invalid(f"The header {HEADER} is given twice.")
            json_header = value
        elif name.startswith(_PAIR_HEADER_PREFIX):
            pairs[name[len(_PAIR_HEADER_PREFIX) :].replace("-", "_")] = value
    if query_text is None and json_header is None and not pairs:
        return {}
    from_query = _object(query_text, "query parameter metadata") if query_text is not None else {}
    from_header = _object(json_header, f"header {HEADER}") if json_header is not None else {}
    return validate({**from_query, **from_header, **pairs})


def validate(pairs: Mapping[str, Any]) -> dict[str, str]:
    """A checked copy of a metadata object (also that of POST /requests).

    At most 100 pairs; keys of 1-255 letters, digits and underscores; values strings of 1-255 characters.
    Raise ObolError `metadata_invalid` naming the key.
    """
    if len(pairs) > MAX_PAIRS:
        raise _invalid(f"There are {len(pairs)} metadata pairs; at most {MAX_PAIRS} are allowed.")
    for key, value in pairs.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise _invalid(f"The metadata key {_shown(key)} is not 1-{MAX_CHARACTERS} letters, digits and underscores.")
        if not isinstance(value, str):
            raise _invalid(f"The metadata value of {_shown(key)} is not a string; quote it.", key)
        if not 1 <= len(value) <= MAX_CHARACTERS:
            raise _invalid(f"The metadata value of {_shown(key)} is not 1-{MAX_CHARACTERS} characters long.", key)
        if not value.isprintable() and not _storable(value):
            raise _invalid(f"The metadata value of {_shown(key)} has a NUL or is not valid Unicode.", key)
    return dict(pairs)


def check_size(pairs: Mapping[str, str], max_bytes: int) -> None:
    """Raise ObolError `metadata_invalid` where keys and values together exceed `max_bytes` in UTF-8."""
    size = sum(len(key) + len(value.encode()) for key, value in pairs.items())
    if size > max_bytes:
        why = f"The metadata has {size} bytes; at most {max_bytes} are allowed."
        raise ObolError("metadata_invalid", why, param="metadata", limit="max_metadata_bytes")


def _object(text: str, place: str) -> dict[str, Any]:
    if len(text) > MAX_TEXT_BYTES:
        raise _invalid(f"The {place} is longer than {MAX_TEXT_BYTES} bytes.")
    try:
        return _OBJECT_DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _invalid(f"The {place} is not a JSON object.") from None


def _storable(value: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL, no lone surrogate."""
    return "\x00" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _shown(key: object) -> str:
    """A key for a message: quoted, and bounded because it is the caller's."""
    return ascii(key[:64] if isinstance(key, str) else type(key).__name__)


def _invalid(message: str, key: str | None = None) -> ObolError:
    return ObolError("metadata_invalid", message, param="metadata" if key is None else f"metadata.{key}")
