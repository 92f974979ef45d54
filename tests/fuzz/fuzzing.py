"""A small mutation fuzzer: seeds and words in, millions of inputs out, every one of them replayable.

Inputs come in blocks of BLOCK_INPUTS; a block is a function of the run's seed and its own number. A finding names
both, and `OBOL_FUZZ_SEED` with `OBOL_FUZZ_BLOCK` runs that block again. Time is that of the processor, so that a
busy machine is not taken for a slow parser.
"""

from __future__ import annotations

import gc
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

BLOCK_INPUTS = 1_000
INPUT_CPU_MS_MAX = 50
"""Processor time of one input, oracles included. The usual one takes 0.1 ms, the slowest 10 ms."""
RETRIES = 5
HANG_CPU_S = 20
"""Processor time after which a block is broken off and the input under way is named."""
TRACED_EVERY_INPUTS = 997
PEAK_BASE_BYTES = 2 * 1024 * 1024
PEAK_BYTES_PER_INPUT_BYTE = 256
MUTATIONS_MAX = 6
BYTE_BY_BYTE_MAX = 200
LONG_REPEAT_SHARE = 0.03
"""How often a piece is repeated until the input is full: what takes quadratic time shows."""

Make = Callable[[Random], bytes]
Check = Callable[[bytes, Random], str]


class Mutator:
    """Makes inputs out of `seeds`, real ones, and `words`, pieces that parsers disagree about."""

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes], *, max_bytes: int = 2_000) -> None:
        self._seeds = list(seeds)
        self._words = list(words)
        self._max_bytes = max_bytes
        self._mutations = (
            self._insert_word,
            self._insert_word,
            self._replace_byte,
            self._delete,
            self._repeat,
            self._splice,
            self._overwrite,
        )

    def __call__(self, random: Random) -> bytes:
        number = random.random
        if number() < 0.2:
            data = b"".join(self._word(random) for _ in range(1 + int(number() * 12)))
        else:
            data = self._seeds[int(number() * len(self._seeds))]
        for _ in range(int(number() * (MUTATIONS_MAX + 1))):
            data = self._mutations[int(number() * len(self._mutations))](data, random)
        return data[: self._max_bytes]

    def _word(self, random: Random) -> bytes:
        return self._words[int(random.random() * len(self._words))]

    def _insert_word(self, data: bytes, random: Random) -> bytes:
        at = int(random.random() * (len(data) + 1))
        return data[:at] + self._word(random) + data[at:]

    def _replace_byte(self, data: bytes, random: Random) -> bytes:
        at = int(random.random() * (len(data) + 1))
        return data[:at] + bytes((int(random.random() * 256),)) + data[at + 1 :]

    def _delete(self, data: bytes, random: Random) -> bytes:
        start, end = _span(data, random)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes, random: Random) -> bytes:
        start, end = _span(data, random)
        long = random.random() < LONG_REPEAT_SHARE
        times = self._max_bytes // max(1, end - start) if long else int(random.random() * 10)
        return data[:end] + data[start:end] * times + data[end:]

    def _splice(self, data: bytes, random: Random) -> bytes:
        other = self._seeds[int(random.random() * len(self._seeds))]
        start, end = _span(other, random)
        at = int(random.random() * (len(data) + 1))
        return data[:at] + other[start:end] + data[at:]

    def _overwrite(self, data: bytes, random: Random) -> bytes:
        word, at = self._word(random), int(random.random() * (len(data) + 1))
        return data[:at] + word + data[at + len(word) :]


def _span(data: bytes, random: Random) -> tuple[int, int]:
    """Mostly short: a long cut leaves nothing to parse."""
    start = int(random.random() * (len(data) + 1))
    return start, min(len(data), start + 1 + int(random.random() ** 3 * len(data)))


def pieces(data: bytes, random: Random) -> list[bytes]:
    """`data` cut at random: whole, in a few pieces, in small ones or byte by byte."""
    number = random.random
    kind = number()
    if kind < 0.05 and len(data) <= BYTE_BY_BYTE_MAX:
        return [data[at : at + 1] for at in range(len(data))]
    longest = 4 + len(data) // 20 if kind < 0.3 else len(data)
    cut, at = [], 0
    while at < len(data):
        end = at + 1 + int(number() * longest)
        cut.append(data[at:end])
        at = end
    return cut


@dataclass
class Report:
    """What a run saw."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0
    slowest: bytes = b""
    peak_bytes: int = 0
    cpu_s: float = 0.0

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {count / self.inputs:.1%}" for name, count in self.outcomes.most_common(12))
        return (
            f"{self.inputs:,} inputs in {self.cpu_s:.1f} s of processor time, slowest {self.slowest_ms:.1f} ms, "
            f"largest peak of memory {self.peak_bytes / 1024:.0f} KiB; {shares}"
        )


class Finding(AssertionError):
    """An input that a parser did not survive, or on which an oracle disagrees."""


def run(make: Make, check: Check, *, seed: int, blocks: Sequence[int]) -> Report:
    """Give every input of `blocks` to `check`, which returns a word for the outcome. Raise Finding."""
    report = Report()
    gc.collect()
    gc.freeze()  # a full collection of what pytest holds would be taken for a slow input
    begun = time.thread_time()
    for block in blocks:
        _block(make, check, seed, block, report)
    report.cpu_s = time.thread_time() - begun
    return report


def _block(make: Make, check: Check, seed: int, block: int, report: Report) -> None:
    random, clock, data = Random((seed << 32) | block), time.thread_time_ns, b""
    number = 0
    try:
        with _no_hang():
            for number in range(BLOCK_INPUTS):
                data = make(random)
                began = clock()
                if (block * BLOCK_INPUTS + number) % TRACED_EVERY_INPUTS:
                    outcome = check(data, random)
                    took_ms = (clock() - began) / 1e6
                else:
                    outcome, took_ms = _traced(check, data, random, report), 0.0
                report.outcomes[outcome] += 1
                if took_ms > report.slowest_ms:
                    report.slowest_ms, report.slowest = _again(check, data, random, took_ms), data
    except Exception as error:
        where = f"OBOL_FUZZ_SEED={seed} OBOL_FUZZ_BLOCK={block} (input {number})"
        raise Finding(f"{where}\ninput: {data!r}\n{type(error).__name__}: {error}") from error
    report.inputs += BLOCK_INPUTS


def _again(check: Check, data: bytes, random: Random, took_ms: float) -> float:
    """How long it takes where nothing else is at work: what is slow once may have been the machine. AssertionError."""
    for _ in range(RETRIES):
        if took_ms <= INPUT_CPU_MS_MAX:
            return took_ms
        began = time.thread_time_ns()
        check(data, Random(0))  # not `random`: what follows must not depend on the machine
        took_ms = min(took_ms, (time.thread_time_ns() - began) / 1e6)
    assert took_ms <= INPUT_CPU_MS_MAX, f"one input took {took_ms:.0f} ms"
    return took_ms


def _traced(check: Check, data: bytes, random: Random, report: Report) -> str:
    """`check` with every allocation counted, which is too slow to be done for each input."""
    tracemalloc.start()
    try:
        outcome = check(data, random)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    report.peak_bytes = max(report.peak_bytes, peak_bytes)
    allowed_bytes = PEAK_BASE_BYTES + PEAK_BYTES_PER_INPUT_BYTE * len(data)
    assert peak_bytes <= allowed_bytes, f"{len(data)} bytes of input took {peak_bytes} bytes of memory"
    return outcome


@contextmanager
def _no_hang() -> Iterator[None]:
    """Break off what takes HANG_CPU_S of this process's own time. The regular expression engine looks, too."""

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"an input did not end within {HANG_CPU_S} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
