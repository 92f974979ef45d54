"""How a caller steers one answer.

    [[fake chunks=50 chunk_delay_ms=5 completion_tokens=250 fault=reset_mid_stream]]    in the last user text
    x-fake-provider: {"chunks": 50, "fault": "status:429"}                              as a request header

The header's fields win over the text's, and the text's over the defaults of the server. A directive is no part of the
prompt: it is neither counted nor echoed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.local.fake.call import FakeError

HEADER = "x-fake-provider"
_IN_TEXT = re.compile(r"\[\[fake\s+([^\[\]]*)\]\]")

Chunks = Annotated[int, Meta(ge=1, le=100_000)]
Milliseconds = Annotated[int, Meta(ge=0, le=600_000)]
Tokens = Annotated[int, Meta(ge=0, le=1_000_000_000)]

# Each fault, with the least, the default and the greatest value it takes after a colon; None: it takes no value.
FAULTS: dict[str, tuple[int, int, int] | None] = {
    "status": (400, 500, 599),
    "reset_before_first_byte": None,
    "reset_mid_stream": None,
    "stall": None,
    "error_event": None,
    "no_usage": None,
    "usage_twice": None,
    "usage_cumulative": None,
    "truncated": None,
    "slow_first_byte": (0, 2_000, 120_000),
    "huge_line": (1, 1_000_000, 64 * 1024 * 1024),
    "gzip": None,
    "gzip_always": None,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`name` is a key of FAULTS or "" for none; `value` a status, milliseconds or bytes, 0 where it takes none."""

    name: str = ""
    value: int = 0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read "name" or "name:value". ValueError naming what is wrong."""
        if not text:
            return cls()
        name, _, value = text.partition(":")
        if name not in FAULTS:
            raise ValueError(f"fault {name!r} is not one of {', '.join(FAULTS)}")
        limits = FAULTS[name]
        if limits is None:
            if value:
                raise ValueError(f"fault {name!r} takes no value")
            return cls(name)
        least, default, greatest = limits
        if value and not (value.isdecimal() and least <= int(value) <= greatest):
            raise ValueError(f"fault {name!r} takes a value from {least} to {greatest}, not {value!r}")
        return cls(name, int(value) if value else default)


class Directive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of one answer; None leaves it to the request.

    `chunks` counts the text deltas of a stream, `delay_ms` passes before the first byte, `chunk_delay_ms` after each
    delta. `prompt_tokens` and `completion_tokens` are totals that include their parts: cached reads and cache
    writes, and reasoning.
    """

    chunks: Chunks | None = None
    chunk_delay_ms: Milliseconds = 0
    delay_ms: Milliseconds = 0
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    cached_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    fault: str = ""
    encoding: Literal["identity", "gzip"] = "identity"

    def __post_init__(self) -> None:
        Fault.parse(self.fault)

    @property
    def parsed_fault(self) -> Fault:
        return Fault.parse(self.fault)


def strip(text: str) -> str:
    """`text` without its directives."""
    return _IN_TEXT.sub("", text).strip() if "[[fake" in text else text


def in_text(texts: Sequence[str]) -> dict[str, str]:
    """The fields of the last directive in `texts`. FakeError 400 on one that is not `name=value`."""
    found = _IN_TEXT.findall("\n".join(texts))
    fields: dict[str, str] = {}
    for item in found[-1].split() if found else ():
        name, equals, value = item.partition("=")
        if not equals:
            raise FakeError(400, f"directive: {item!r} is not name=value", "fake")
        fields[name] = value
    return fields


def resolve(defaults: Directive, texts: Sequence[str], header: str) -> Directive:
    """The directive of one request. FakeError 400 naming the field that is unknown or out of range."""
    fields: dict[str, Any] = in_text(texts)
    try:
        fields |= msgspec.json.decode(header, type=dict[str, Any]) if header else {}
        return build(defaults, fields)
    except msgspec.MsgspecError as error:
        raise FakeError(400, f"directive: {error}", HEADER) from None


def build(defaults: Directive, fields: dict[str, Any]) -> Directive:
    """`defaults` with `fields` put over them. msgspec.ValidationError naming a bad field."""
    if not fields:
        return defaults
    return msgspec.convert(msgspec.structs.asdict(defaults) | fields, Directive, strict=False)
