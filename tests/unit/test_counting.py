"""Token counts: the shipped tables are the published ones, the counts tiktoken's own, and no text does harm."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public as published
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.counting import (
    ENCODINGS,
    INLINE_CHARACTERS,
    PIECE_CHARACTERS,
    RANKS_DIRECTORY,
    Counter,
    _pieces,
    encoding_name,
    estimate,
)

ENGLISH = "The quick brown fox, it's said, jumps over 12345 lazy dogs!\n\n  Then  it rests. "


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    counter.close()


@pytest.fixture(scope="module", params=ENCODINGS)
def whole(request: pytest.FixtureRequest, counter: Counter) -> tiktoken.Encoding:
    return counter._encoding(request.param)


def model_of(encoding: tiktoken.Encoding) -> str:
    return {"o200k_base": "gpt-4o", "cl100k_base": "gpt-4"}[encoding.name]


@pytest.mark.parametrize("name", ENCODINGS)
def test_tables_and_definitions_are_the_published_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken's own constructor, fed with our file: the hash it expects, its pattern and special tokens."""
    hashes: list[str] = []
    unpacked = gzip.decompress((RANKS_DIRECTORY / f"{name}.tiktoken.gz").read_bytes())

    def from_our_file(url: str, expected_hash: str) -> dict[bytes, int]:
        hashes.append(expected_hash)
        return {}

    monkeypatch.setattr(published, "load_tiktoken_bpe", from_our_file)
    theirs = published.ENCODING_CONSTRUCTORS[name]()
    assert hashes == [hashlib.sha256(unpacked).hexdigest()]
    ours = Counter()._encoding(name)
    assert (ours._pat_str, ours._special_tokens) == (theirs["pat_str"], theirs["special_tokens"])
    assert ours.n_vocab == {"o200k_base": 200_019, "cl100k_base": 100_277}[name]


def test_the_tables_carry_no_name_and_no_time() -> None:
    for path in sorted(Path(RANKS_DIRECTORY).glob("*.gz")):
        header = path.read_bytes()[:10]
        assert header[3] == 0 and header[4:8] == bytes(4), path.name


@pytest.mark.parametrize(
    ("model", "text", "tokens"),
    [
        ("gpt-4", "hello world", 2),
        ("gpt-4", "tiktoken is great!", 6),
        ("gpt-4", "antidisestablishmentarianism", 6),
        ("gpt-4", "2 + 2 = 4", 7),
        ("gpt-4", "お誕生日おめでとう", 9),
        ("gpt-4o", "hello world", 2),
        ("gpt-4o", "antidisestablishmentarianism", 6),
        ("gpt-4o", "2 + 2 = 4", 7),
        ("gpt-4o", "お誕生日おめでとう", 8),
        ("gpt-4o", "<|endoftext|>", 7),
        ("gpt-4o", "", 0),
    ],
)
def test_known_counts(counter: Counter, model: str, text: str, tokens: int) -> None:
    """The counts in OpenAI's cookbook, "How to count tokens with tiktoken"; special tokens are plain text."""
    assert counter.count_sync(text, model) == tokens


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("GPT-4-Turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("openai/gpt-4", "cl100k_base"),
        ("ft:gpt-3.5-turbo-0125:org::id", "cl100k_base"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "o200k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4.1-mini", "o200k_base"),
        ("gpt-4.5-preview", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("o1", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("claude-sonnet-4-5", "o200k_base"),
        ("", "o200k_base"),
        (None, "o200k_base"),
    ],
)
def test_encoding_of_a_model(model: str | None, encoding: str) -> None:
    assert encoding_name(model) == encoding


def test_pieces_count_as_the_whole(counter: Counter, whole: tiktoken.Encoding) -> None:
    """English with every kind of boundary, long enough for several cuts: not a token more or less."""
    text = ENGLISH * 2_000
    assert counter.count_sync(text, model_of(whole)) == len(whole.encode_ordinary(text))


@settings(max_examples=75, deadline=None)
@given(words=st.lists(st.sampled_from(["a", " b", "\n", "  ", "!", "'s", "é", "漢", " 1", "\t", "\u0301", " \n x"])))
@example(words=["!", " \n x"] * 40)
def test_cuts_are_where_no_token_reaches_across(whole: tiktoken.Encoding, words: list[str]) -> None:
    """Any text around the one place of the search window at which a cut is allowed."""
    text = "x" * 24_000 + "." + "".join(words)[:400] + "z word" + "." * 2_000
    pieces = list(_pieces(text))
    assert "".join(pieces) == text and len(pieces) == 2
    assert sum(len(whole.encode_ordinary(piece)) for piece in pieces) == len(whole.encode_ordinary(text))


def test_text_without_a_boundary_counts_nearly_as_the_whole(counter: Counter, whole: tiktoken.Encoding) -> None:
    text = "漢字とかな" * 20_000
    counted = counter.count_sync(text, model_of(whole))
    pieces = len(list(_pieces(text)))
    assert 0 <= counted - len(whole.encode_ordinary(text)) <= 2 * pieces


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000,
        "\n" * 300_000,
        " \n" * 150_000,
        (" " * 24_999 + "x") * 10,
        "a" * 300_000,
        "!" * 300_000,
        "\u0301" * 100_000,
        "😀" * 100_000,
        "\ud800" * 30_000,
        "ok \udfff and \ud83d\ude00 broken " * 5_000,
        "\x00" * 30_000,
    ],
    ids=lambda text: ascii(text[:6]),
)
def test_hostile_text_is_counted(counter: Counter, text: str) -> None:
    for model in ("gpt-4o", "gpt-4"):
        assert 0 < counter.count_sync(text, model) <= len(text.encode("utf-8", "surrogatepass"))


@given(text=st.text(alphabet=st.characters(), max_size=60))
def test_any_text_has_a_bounded_count(counter: Counter, text: str) -> None:
    tokens = counter.count_sync(text, "gpt-4o")
    assert (tokens > 0) == bool(text)
    assert tokens <= 3 * len(text.encode("utf-16", "surrogatepass"))


def test_pieces_are_bounded_in_bytes() -> None:
    text = "😀" * 60_000 + ENGLISH * 2_000
    pieces = list(_pieces(text))
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 4 * PIECE_CHARACTERS == 100_000


async def test_the_loop_is_not_blocked(counter: Counter) -> None:
    """20 MB in one line: while it is counted the loop keeps turning.

    The median of the loop's pauses is asserted, not the longest one, which on a shared core is the scheduler's.
    """
    await counter.load("o200k_base")
    large = Counter(max_text_bytes=32_000_000)
    await large.load("o200k_base")
    text = "word " * 4_000_000
    pauses_s: list[float] = []
    counting = asyncio.ensure_future(large.count(text, "gpt-4o"))
    while not counting.done():
        before = time.perf_counter()
        await asyncio.sleep(0)
        pauses_s.append(time.perf_counter() - before)
    large.close()
    assert await counting == 4_000_001
    pauses_s.sort()
    assert len(pauses_s) > 100 and pauses_s[len(pauses_s) // 2] < 0.005
    assert pauses_s[int(len(pauses_s) * 0.99)] < 0.02


async def test_large_and_small_texts_take_the_same_count(counter: Counter) -> None:
    short, long = ENGLISH * 3, ENGLISH * 200
    assert len(short) <= INLINE_CHARACTERS < len(long)
    for text in (short, long):
        assert await counter.count(text, "gpt-4") == counter.count_sync(text, "gpt-4")


async def test_an_encoding_is_loaded_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    original = tiktoken.Encoding

    def counted(name: str, **arguments: object) -> tiktoken.Encoding:
        loads.append(name)
        return original(name, **arguments)

    monkeypatch.setattr(tiktoken, "Encoding", counted)
    counter = Counter(threads=4)
    assert await asyncio.gather(*(counter.count("hello world", "gpt-4") for _ in range(8))) == [2] * 8
    counter.close()
    assert loads == ["cl100k_base"]


async def test_above_the_limit_the_size_decides() -> None:
    counter = Counter(max_text_bytes=1_000)
    assert not counter.estimates("x" * 1_000)
    assert counter.estimates("x" * 1_001)
    assert not counter.estimates("é" * 250)
    assert counter.estimates("é" * 251)
    assert await counter.count("x" * 1_001, "gpt-4o") == 251
    assert counter._encodings == {}
    counter.close()


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("漢", 1), ("\ud800" * 4, 3)]
)
def test_estimate(text: str, tokens: int) -> None:
    assert estimate(text) == tokens


async def test_an_unknown_encoding_is_refused() -> None:
    counter = Counter()
    with pytest.raises(KeyError):
        await counter.load("p50k_base")
    counter.close()
