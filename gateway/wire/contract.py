"""The contract between the proxy and a wire format.

The proxy asks a `Format` three things: what does this request ask for (`read_request`), which bytes go
upstream (`upstream_body`), and - through a `Meter` that watches the response go by - what was used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.core.usage import Usage
from gateway.wire.fields import COUNT_MAX


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for, as far as metering and pricing care."""

    model: str | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    choices: int = 1
    """How many completions are asked for (OpenAI `n`, Gemini `candidateCount`): each may use the maximum."""
    include_usage: bool = False
    """The client itself asked for the usage chunk of an OpenAI stream."""
    service_tier: str | None = None
    free: bool = False
    """The provider bills nothing for this call (token counting, moderation): there is no usage to estimate."""
    usage: Usage | None = None
    """What is billed by the request itself (characters to speak), where no response tells."""
    counted: Usage | None = None
    """What the request lets us count (the length of a recording, images asked for): used where the response should
    have told and did not, and flagged estimated."""
    at_most: Usage | None = None
    """The most that the call can use of everything but output text, where that is not `input_tokens` = the size of the
    body in bytes (no token of text is shorter than a byte): media, files and earlier turns that are elsewhere, tools'
    own prompts and results, seconds, images, searches. `ALL` in a part means that the whole may be of that class;
    `output_tokens`, where set, is the limit of the whole call's output instead of `max_output_tokens`."""
    hidden_tokens_max: int = 0
    """Reasoning that may be billed and not show in the stream (`wire/reasoning.py`): 0 for none, ALL where the request
    sets no bound of its own."""


ALL = COUNT_MAX
"""More than any whole, to which prices cut a part."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a response said about itself. `usage` is None when it said nothing usable."""

    usage: Usage | None = None
    model: str | None = None
    response_id: str | None = None
    failed: str | None = None
    """The message of an error that arrived inside a response of status 200."""
    finished: bool = True
    """A stream's own end marker (or final usage) was seen; False: it was cut short."""
    service_tier: str | None = None
    estimated: bool = False
    """`usage` was counted or derived here, because the response does not tell it."""


class Meter(Protocol):
    """Watches one response. Never raises on bad bytes: it reads less, and says so in its Reading."""

    seen_bytes: int
    """Decoded body bytes fed so far: a bound on the output while nothing better is known."""

    def feed(self, data: bytes) -> bytes:
        """Take decoded body bytes as they arrive; return those to send on now.

        They are the same bytes, later only by what `hide_usage` withholds. No event without
        usage is parsed as JSON.
        """
        ...

    def finish(self) -> bytes:
        """The body is over: return what was still held back, to be sent on. Call once, before `reading`."""
        ...

    def reading(self) -> Reading:
        """What the response said. Parses what was put off, so a large body is better read off the event loop."""
        ...

    def text(self) -> str:
        """The output text seen so far, to be counted where the provider gave no usage. Bounded; parsed on demand."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Body bytes that `text` covers. Output beyond them is estimated: tokens * seen_bytes / kept_bytes."""
        ...


class EventReader(Protocol):
    """Reads single events (`wire/reader.py`)."""

    def event_text(self, data: bytes) -> str:
        """The output text in one event."""
        ...


class Format(Protocol):
    """One wire format. Stateless."""

    name: str
    dialect: str
    """"openai", "anthropic" or "google": how errors are told to this format's clients."""

    @property
    def reader(self) -> Callable[[str], EventReader]:
        """Makes a reader of the events of its streams, given the provider's name."""
        ...

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        """`content_type`: of the request; it holds the boundary of a multipart body.
        Raise ObolError `forward_model_invalid` or `invalid_request` naming the field."""
        ...

    def upstream_body(self, body: bytes, facts: RequestFacts, *, inject_usage: bool) -> bytes:
        """The bytes for the provider: `body` itself, or with `stream_options.include_usage` set where
        `inject_usage` is on, the call streams and the client did not ask."""
        ...

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        """A fresh meter. `provider`: its name in the provider table. `content_type`: of the response.
        `hide_usage`: withhold the usage-only chunk the client did not ask for.
        `limit_bytes` bounds what the meter keeps (of a JSON body, of one event)."""
        ...

    def request_text(self, body: bytes) -> str:
        """The prompt as text, for a local count where the provider gives none."""
        ...

    def request_media(self, body: bytes, model: str) -> Usage:
        """The prompt's images, sound and files in tokens, by the vendor's rules: what `request_text` leaves out.
        Decodes the body: better called off the event loop."""
        ...
