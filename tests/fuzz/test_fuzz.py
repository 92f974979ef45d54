"""The parsers of untrusted input under fuzz: a few thousand inputs in `make test`, 1.1 million in `make faults`.

    OBOL_FUZZ_SEED=7 OBOL_FUZZ_BLOCK=12 pytest tests/fuzz -k 'quick and target'   runs one block again
    OBOL_FUZZ_SEED=7 pytest tests/fuzz -m slow                                  runs all of it with that seed
    OBOL_FUZZ_TIMES=3 pytest tests/fuzz -m slow                                 runs three times as many

The quick run has the same inputs each time; the long one takes a new seed, which a finding tells.
"""

from __future__ import annotations

import os
import secrets
from typing import NamedTuple

import fuzz_credential
import fuzz_decoding
import fuzz_formats
import fuzz_sse
import fuzz_target
import fuzz_translate
import pytest
from fuzzing import BLOCK_INPUTS, Check, Make, Report, run

SHARD_BLOCKS = 50
QUICK_SEED = 1


class Fuzzed(NamedTuple):
    make: Make
    check: Check
    quick_blocks: int
    long_blocks: int


FUZZED = {
    "credential": Fuzzed(fuzz_credential.make, fuzz_credential.check, 4, 250),
    "target": Fuzzed(fuzz_target.make, fuzz_target.check, 4, 250),
    "events": Fuzzed(fuzz_sse.make_stream, fuzz_sse.check_events, 4, 250),
    "elements": Fuzzed(fuzz_sse.make_elements, fuzz_sse.check_elements, 2, 50),
    "hiding": Fuzzed(fuzz_sse.make_stream, fuzz_sse.check_hiding, 1, 50),
    "requests": Fuzzed(fuzz_formats.make_request, fuzz_formats.check_request, 2, 100),
    "answers": Fuzzed(fuzz_formats.make_answer, fuzz_formats.check_answer, 2, 50),
    "metadata": Fuzzed(fuzz_formats.make_metadata, fuzz_formats.check_metadata, 2, 100),
    "translated requests": Fuzzed(fuzz_translate.make_request, fuzz_translate.check_request, 1, 50),
    "translated answers": Fuzzed(fuzz_translate.make_answer, fuzz_translate.check_answer, 1, 50),
    "decoding": Fuzzed(fuzz_decoding.make, fuzz_decoding.check, 1, 50),
}
TIMES = int(os.environ.get("OBOL_FUZZ_TIMES", "1"))
SHARDS = [(name, shard) for name, one in FUZZED.items() for shard in range(-(-one.long_blocks * TIMES // SHARD_BLOCKS))]


def _seed(default: int) -> int:
    given = os.environ.get("OBOL_FUZZ_SEED") or os.environ.get("OBOL_FAULTS_SEED")
    return int(given) if given else default


def _assert_reached(name: str, report: Report) -> None:
    """A fuzzer of which every input is refused at the door proves nothing."""
    assert len(report.outcomes) > 1, f"{name}: {report}"


@pytest.mark.parametrize("name", FUZZED)
def test_a_quick_run(name: str) -> None:
    one, block = FUZZED[name], os.environ.get("OBOL_FUZZ_BLOCK")
    blocks = range(one.quick_blocks) if block is None else [int(block)]
    report = run(one.make, one.check, seed=_seed(QUICK_SEED), blocks=blocks)
    print(name, report)
    assert report.inputs == len(blocks) * BLOCK_INPUTS
    _assert_reached(name, report)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "shard"), SHARDS)
def test_a_long_run(name: str, shard: int) -> None:
    one = FUZZED[name]
    blocks = range(shard * SHARD_BLOCKS, min((shard + 1) * SHARD_BLOCKS, one.long_blocks * TIMES))
    report = run(one.make, one.check, seed=_seed(secrets.randbits(31)), blocks=blocks)
    print(name, report)
    assert report.inputs == len(blocks) * BLOCK_INPUTS
    _assert_reached(name, report)
