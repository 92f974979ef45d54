"""Token counts of text, for where a provider reports no usage and for the size of a hold.

OpenAI's two encodings, from rank tables that ship in `gateway/ranks` (tiktoken would fetch them from the network).
Other vendors publish no tokenizer that is at once exact and small, so their models are counted with o200k_base.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import tiktoken

RANKS_DIRECTORY = Path(__file__).parent / "ranks"

# tiktoken's regular expressions panic on long runs of white space: no piece is larger than 100 KB of UTF-8, nor
# takes longer than some 8 ms.
PIECE_CHARACTERS = 25_000
_CUT_SEARCH_CHARACTERS = 1_000
# Counted on the event loop itself: 0.2 ms of English, at most some 1.5 ms of the worst text.
INLINE_CHARACTERS = 4_096
_BYTES_PER_ESTIMATED_TOKEN = 4
_UTF8_BYTES_PER_CHARACTER_MAX = 4


class _Definition(NamedTuple):
    """A tiktoken encoding without its ranks; from tiktoken's `openai_public.py`, which a test compares."""

    pattern: str
    special_tokens: dict[str, int]


_DEFINITIONS = {
    "o200k_base": _Definition(
        "|".join(
            [
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""\p{N}{1,3}""",
                r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
                r"""\s*[\r\n]+""",
                r"""\s+(?!\S)""",
                r"""\s+""",
            ]
        ),
        {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
    "cl100k_base": _Definition(
        "|".join(
            [
                r"""'(?i:[sdmt]|ll|ve|re)""",
                r"""[^\r\n\p{L}\p{N}]?+\p{L}++""",
                r"""\p{N}{1,3}+""",
                r""" ?[^\s\p{L}\p{N}]++[\r\n]*+""",
                r"""\s++$""",
                r"""\s*[\r\n]""",
                r"""\s+(?!\S)""",
                r"""\s""",
            ]
        ),
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
}
ENCODINGS = tuple(_DEFINITIONS)

_NEWER_GPT_4 = ("gpt-4o", "gpt-4.")
_CL100K_FAMILIES = ("gpt-4", "gpt-3.5", "gpt-35", "text-embedding-", "davinci-002", "babbage-002")


def encoding_name(model: str | None) -> str:
    """The name of the encoding that counts for `model`: any case, with "openai/" or "ft:" before it or not."""
    name = (model or "").lower().rpartition("/")[2].removeprefix("ft:")
    if name.startswith(_CL100K_FAMILIES) and not name.startswith(_NEWER_GPT_4):
        return "cl100k_base"
    return "o200k_base"


class Counter:
    """Counts tokens. Text that may be larger than `max_text_bytes` is estimated from its size (`estimates`).

    An encoding is loaded at its first use, once: it takes half a second, 30 or 75 MB, and a quarter of a second of
    that in one call that no other thread can interrupt. `load` at start keeps that off live requests.
    """

    def __init__(self, *, max_text_bytes: int = 4 * 1024 * 1024, threads: int = 1) -> None:
        self.max_text_bytes = max_text_bytes
        self._encodings: dict[str, tiktoken.Encoding] = {}
        self._loading = Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="count-tokens")

    def close(self) -> None:
        """Drop what has not begun, wait for what has: at most one text of `max_text_bytes` a thread."""
        self._pool.shutdown(cancel_futures=True)

    async def load(self, *names: str) -> None:
        """Load these encodings now. KeyError if there is none of such a name."""
        loop = asyncio.get_running_loop()
        for name in names:
            await loop.run_in_executor(self._pool, self._encoding, name)

    async def count(self, text: str, model: str | None) -> int:
        """Tokens of `text` in the encoding of `model`, or the estimate where `estimates(text)`.

        Anything but a short text is counted in a thread. Special tokens in it count as plain text.
        """
        if len(text) <= INLINE_CHARACTERS and encoding_name(model) in self._encodings:
            return self.count_sync(text, model)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.count_sync, text, model)

    def count_sync(self, text: str, model: str | None) -> int:
        """As `count`, in this thread."""
        if not text:
            return 0
        if self.estimates(text):
            return estimate(text)
        encoding = self._encoding(encoding_name(model))
        return sum(len(encoding.encode_ordinary(piece)) for piece in _pieces(text))

    def estimates(self, text: str) -> bool:
        """Whether `count` estimates this text, which a caller must flag. Takes no time: a bound of the size decides."""
        bytes_each = 1 if text.isascii() else _UTF8_BYTES_PER_CHARACTER_MAX
        return len(text) * bytes_each > self.max_text_bytes

    def _encoding(self, name: str) -> tiktoken.Encoding:
        encoding = self._encodings.get(name)
        if encoding is None:
            with self._loading:
                encoding = self._encodings.get(name)
                if encoding is None:
                    encoding = self._encodings[name] = _load(name)
        return encoding


def estimate(text: str) -> int:
    """A quarter of the text's size in UTF-8 bytes, rounded up."""
    size_bytes = sum(len(piece.encode("utf-8", "surrogatepass")) for piece in _pieces(text))
    return -(-size_bytes // _BYTES_PER_ESTIMATED_TOKEN)


def _load(name: str) -> tiktoken.Encoding:
    definition = _DEFINITIONS[name]
    fields = iter(gzip.decompress((RANKS_DIRECTORY / f"{name}.tiktoken.gz").read_bytes()).split())
    return tiktoken.Encoding(
        name,
        pat_str=definition.pattern,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in zip(fields, fields, strict=True)},
        special_tokens=definition.special_tokens,
    )


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = _cut(text, start + PIECE_CHARACTERS)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, limit: int) -> int:
    """The last place up to `limit` where no token can reach across: before a space with a letter after it and no
    white space before it. Text without such a place is cut at `limit`, for at most a token or two more a piece."""
    lowest = limit - _CUT_SEARCH_CHARACTERS
    place = text.rfind(" ", lowest, limit)
    while place > lowest:
        if text[place + 1].isalpha() and not text[place - 1].isspace():
            return place
        place = text.rfind(" ", lowest, place)
    return limit
