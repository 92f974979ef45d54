"""`/v1/rewrite/{openai|anthropic|google}/{url}`: a call in one dialect for a provider's URL in another. Pure.

The URL stands in the path, with its scheme or without; what normalises `//` makes `https:/` of it. A vendor's package
appends a path of its own, which is taken off where what is left is an endpoint that can be asked. Google's tells the
model and whether to stream in that path.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from gateway.errors import ObolError
from gateway.wire.dropin import Route, gateway_query

PREFIX = "/v1/rewrite/"
EXAMPLE = "/v1/rewrite/openai/https://api.anthropic.com/v1/messages"
_FORMATS = {"openai": "openai_chat", "anthropic": "anthropic_messages", "google": "gemini_generate"}
_APPENDED = {"openai": ("/v1/chat/completions", "/chat/completions"), "anthropic": ("/v1/messages",), "google": ()}
_GOOGLE = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]{1,600}):(generateContent|streamGenerateContent)$")
_ENCODED = re.compile(r"https?%3a", re.IGNORECASE)
_SCHEME = re.compile(r"(https?):/{1,2}", re.IGNORECASE)
_ROUTE = Route("", "", "")


class Place(NamedTuple):
    """A URL that may be meant, as a path-style target, and the model that the path after it names."""

    line: str
    model: str | None = None


class Rewrite(msgspec.Struct, frozen=True):
    """What a request line says. The first of `places` that can be asked is meant."""

    dialect: str
    format: str
    """The wire format that the client speaks."""
    places: tuple[Place, ...]
    query: str
    query_key: str | None
    """The credential that stood in the query."""
    metadata: str | None


def dialect_of(raw_target: str) -> str | None:
    """The client's dialect, in which every error is told; None where the path names none."""
    name = raw_target[len(PREFIX) :].partition("/")[0]
    return name if name in _FORMATS else None


def rewrite_of(raw_target: str) -> Rewrite:
    """Raise ObolError `forward_target_invalid`, `forward_target_missing` or `forward_translation_not_supported`."""
    path, _, raw_query = raw_target.partition("?")
    name, _, tail = path[len(PREFIX) :].partition("/")
    if name not in _FORMATS:
        known = "openai, anthropic or google"
        why = "is not translated yet" if name == "bedrock" else "is not known"
        raise ObolError("forward_translation_not_supported", f"the format {name!r} {why}: use {known}", param="format")
    query, key, metadata = gateway_query(raw_query, _ROUTE)
    target = _target(tail)
    found, streams = _GOOGLE.search(target), "alt=sse" in query.split("&")
    if name == "google" and found is not None:
        streams = found[2] == "streamGenerateContent"
    format_name = "gemini_stream" if name == "google" and streams else _FORMATS[name]
    return Rewrite(name, format_name, tuple(_places(name, target)), query, key, metadata)


def _target(tail: str) -> str:
    """`https/<host>/<path>` of a URL as it stands in a path."""
    if _ENCODED.match(tail):
        encoded, slash, appended = tail.partition("/")
        tail = unquote(encoded) + slash + appended
    if not tail:
        raise ObolError("forward_target_missing", f"the URL of the provider is missing: {EXAMPLE}", param="url")
    found = _SCHEME.match(tail)
    return f"{found[1].lower()}/{tail[found.end() :]}" if found else f"https/{tail}"


def _places(name: str, target: str) -> list[Place]:
    line = "/v1/forward/" + target
    places = [Place(line.removesuffix(end)) for end in _APPENDED[name] if line.endswith(end)]
    found = _GOOGLE.search(line) if name == "google" else None
    if found is not None:
        places.append(Place(line[: found.start()], unquote(found[1])))
    return [*places, Place(line)]
