"""docs/providers.md says what the table, the formats and the recordings say."""

from __future__ import annotations

import provider_table
import pytest

from gateway.wire.formats import FORMATS


def test_every_format_is_explained() -> None:
    assert set(provider_table.METERED) == set(FORMATS)


def test_the_table_is_the_one_that_is_generated() -> None:
    if not provider_table.RECORDINGS.is_dir():
        pytest.skip(f"the recorded exchanges are not there: {provider_table.RECORDINGS}")
    text = provider_table.DOCUMENT.read_text(encoding="utf-8")
    written = text.partition(provider_table.BEGIN)[2].partition(provider_table.END)[0].strip("\n") + "\n"
    assert written == provider_table.generated(), "run: python tests/unit/provider_table.py"
