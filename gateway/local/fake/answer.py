"""The words, ids and usage of an answer: functions of the request (and its directive) alone.

The rules, simple enough to foresee in a test:

- prompt tokens = whitespace-separated words of all texts of the prompt (directives removed) + 4 a message;
- output tokens = words produced (+ reasoning, where a directive asks for it), never above the request's maximum;
  of more than 100,000 only so many words are written, while the usage still says what was asked for;
- one delta of a stream holds one word, unless a directive says how many deltas there are;
- ids are made from a digest of method, path and body, so the same request gets the same id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from typing import Literal

from gateway.local.fake.call import Call, FakeError, JsonObject
from gateway.local.fake.directive import Directive, strip

TOKENS_PER_MESSAGE = 4
ECHOED_WORDS_MAX = 24
WORDS_MAX = 100_000
EPOCH_S = 1_760_000_000

_DEMONSTRATION = (
    "Every call that passes through the gateway is metered: the tokens of the prompt and of the answer are counted, "
    "priced by the merchant's meter and debited from the customer's wallet while the words are still arriving. "
    "An amount is rounded once, at the very end, so the lines of a bill always add up to the debit. "
    "This answer was written by the fake provider that ships with Obol. Its words and its usage depend on your "
    "request alone, so the same question always costs the same."
)
_PARAGRAPH = tuple(_DEMONSTRATION.split())

UsageMode = Literal["normal", "none", "twice", "cumulative"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What every format reads out of its request."""

    call: Call
    model: str
    texts: tuple[str, ...] = ()
    """All text of the prompt, in order."""
    user_texts: tuple[str, ...] = ()
    """The texts of the last user message, where a directive may stand."""
    messages: int = 0
    max_output_tokens: int | None = None
    stream: bool = False
    choices: int = 1
    fields: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tokens:
    """`prompt` includes `cached` and `cache_write`, `completion` includes `reasoning`."""

    prompt: int
    completion: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `tokens.completion` is that of one choice."""

    prompt: Prompt
    question: str
    words: int
    chunks: int
    tokens: Tokens
    cut_short: bool
    """The request's maximum was reached."""
    usage_mode: UsageMode
    huge_chunk_bytes: int

    @property
    def model(self) -> str:
        return self.prompt.model

    @property
    def fingerprint(self) -> str:
        return self.prompt.call.fingerprint

    @property
    def created_s(self) -> int:
        """A Unix time derived from the request, so that answers stay reproducible."""
        return EPOCH_S + int(self.fingerprint[:5], 16)

    def deltas(self) -> Iterator[str]:
        """The text in `chunks` pieces; joined they are the whole text."""
        words = islice(self._words(), self.words)
        for index in range(self.chunks):
            size = (index + 1) * self.words // self.chunks - index * self.words // self.chunks
            piece = " ".join(islice(words, size))
            if self.huge_chunk_bytes and index == self.chunks // 2:
                piece = "x" * self.huge_chunk_bytes
            yield f" {piece}" if index else piece

    def counted_deltas(self) -> Iterator[tuple[str, Tokens]]:
        """Each delta with the usage up to and including it."""
        for index, text in enumerate(self.deltas(), start=1):
            yield text, self.tokens_after(index)

    def tokens_after(self, chunks: int) -> Tokens:
        """The usage once `chunks` deltas are out."""
        whole = self.tokens
        visible = chunks * (whole.completion - whole.reasoning) // max(self.chunks, 1)
        return Tokens(whole.prompt, visible + whole.reasoning, whole.cached, whole.cache_write, whole.reasoning)

    def text(self) -> str:
        return "".join(self.deltas())

    def _words(self) -> Iterator[str]:
        return chain(_opening(self.question), cycle(_PARAGRAPH))


def compose(prompt: Prompt, directive: Directive) -> Answer:
    """The answer to `prompt`. FakeError 400 if the directive contradicts itself."""
    question = " ".join(strip(text) for text in prompt.user_texts).strip()
    wanted = _wanted_tokens(question, directive)
    limit = prompt.max_output_tokens
    completion = wanted if limit is None else min(wanted, limit)
    reasoning = min(directive.reasoning_tokens, completion)
    words = min(completion - reasoning, WORDS_MAX)
    fault = directive.parsed_fault
    return Answer(
        prompt=prompt,
        question=question,
        words=words,
        chunks=min(directive.chunks or words, words),
        tokens=_tokens(prompt, directive, completion, reasoning),
        cut_short=completion < wanted,
        usage_mode=_USAGE_MODES.get(fault.name, "normal"),
        huge_chunk_bytes=fault.value if fault.name == "huge_line" else 0,
    )


_USAGE_MODES: dict[str, UsageMode] = {
    "no_usage": "none",
    "usage_twice": "twice",
    "usage_cumulative": "cumulative",
}


def count_words(text: str) -> int:
    """Tokens of one text by the fake's rule: its words, directives removed."""
    return len(strip(text).split())


def prompt_tokens(prompt: Prompt) -> int:
    return sum(map(count_words, prompt.texts)) + TOKENS_PER_MESSAGE * prompt.messages


def _wanted_tokens(question: str, directive: Directive) -> int:
    if directive.completion_tokens is not None:
        return directive.completion_tokens
    words = directive.chunks or len(_opening(question)) + len(_PARAGRAPH)
    return words + directive.reasoning_tokens


def _tokens(prompt: Prompt, directive: Directive, completion: int, reasoning: int) -> Tokens:
    counted = prompt_tokens(prompt) if directive.prompt_tokens is None else directive.prompt_tokens
    if directive.cached_tokens + directive.cache_write_tokens > counted:
        raise FakeError(400, f"directive: cached_tokens and cache_write_tokens exceed the {counted} prompt tokens")
    return Tokens(counted, completion, directive.cached_tokens, directive.cache_write_tokens, reasoning)


def _opening(question: str) -> list[str]:
    words = question.split()
    if not words:
        return []
    echoed = " ".join(words[:ECHOED_WORDS_MAX]) + (" ..." if len(words) > ECHOED_WORDS_MAX else "")
    return f'You asked: "{echoed}"'.split()
