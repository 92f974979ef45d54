"""A real worker whose card processor is a Machine in another process (argument 1: its address).

Everything else it has from the environment, as `obol worker` does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from card_processor import OverHttp

from gateway import settings
from gateway.cards import choice
from gateway.worker import charger, main

LEASE_MARGIN_MS = 700


class Cards:
    """The one processor, whoever asks."""

    def __init__(self, url: str) -> None:
        self._processor = OverHttp(url)

    def named(self, mode: str, name: str) -> OverHttp:
        assert (mode, name) == ("test", "sandbox")
        return self._processor


@asynccontextmanager
async def opened(given: Any, store: Any) -> AsyncIterator[Cards]:
    yield Cards(sys.argv[1])


if __name__ == "__main__":
    choice.opened = opened  # type: ignore[assignment]
    charger.LEASE_MARGIN_MS = LEASE_MARGIN_MS  # type: ignore[misc]
    given = settings.load()
    state = {"workers": [], "worker_pid": os.getpid(), "valkey_pid": None, "postgres_pid": None}
    (Path(given.data_dir) / "up.json").write_text(json.dumps(state))
    sys.exit(main.run(given, None))
