"""The outline of a prompt: which kinds of parts it has, and not what is in them.

It is decoded together with the members that matter anyhow, at little more than the cost of skipping the prompt, and is
exact where a name is escaped or stands in a text. What does not have the shape expected is taken to hold anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

TEXT = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal"})


class Part(msgspec.Struct):
    """A part of a message, or a tool: its kind. `content`: of a tool's result."""

    type: str | None = None
    content: str | list[Part] | None = None
    cache_control: Any = None


class Message(msgspec.Struct):
    """A message, or an item of a Responses request. `audio`: sound spoken before, by reference."""

    type: str | None = None
    content: str | list[Part] | None = None
    output: str | list[Part] | None = None
    audio: Any = None


Parts = list[Part] | None
Messages = str | list[Message] | None


def messages_show(messages: Messages, plain: frozenset[str] = TEXT, items: frozenset[str | None] | None = None) -> bool:
    """Whether messages may hold anything but text. `plain`: the kinds of parts that are text; `items`: the kinds of
    items that are text or have parts, where not all do."""
    if not isinstance(messages, list):
        return False
    for message in messages:
        if message.audio is not None or (items is not None and message.type not in items):
            return True
        if type(message.content) is list and parts_show(message.content, plain):
            return True
        if type(message.output) is list and parts_show(message.output, plain):
            return True
    return False


def parts_show(parts: Iterable[Part], plain: frozenset[str]) -> bool:
    for part in parts:
        if part.type not in plain or (type(part.content) is list and parts_show(part.content, plain)):
            return True
    return False


def kinds(tools: Parts) -> set[str]:
    """The kinds of tools, "" for one that does not say."""
    return {tool.type or "" for tool in tools or ()}


def cache_controls(parts: Iterable[Part]) -> Iterator[Any]:
    """Each `cache_control` in parts and in the parts within them."""
    for part in parts:
        if part.cache_control is not None:
            yield part.cache_control
        if type(part.content) is list:
            yield from cache_controls(part.content)
