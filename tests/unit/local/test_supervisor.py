"""The order in which a roll replaces processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.local import parts, supervisor
from gateway.local.supervisor import Supervisor
from gateway.settings import Settings


class FakeChild:
    pid = None

    def __init__(self, name: str, told: list[str], ends: asyncio.Event | None = None) -> None:
        self.name, self.told, self.ends = name, told, ends

    async def start(self) -> None:
        self.told.append(f"{self.name} started")

    async def stop(self) -> None:
        if self.ends is not None:
            await self.ends.wait()
        self.told.append(f"{self.name} ended")


async def test_no_gateway_is_replaced_before_the_old_worker_has_ended(tmp_path: Path, monkeypatch) -> None:
    """Also where that takes longer than a roll waits for a gateway."""
    told: list[str] = []
    flushed, drained = asyncio.Event(), asyncio.Event()
    settings = Settings(data_dir=str(tmp_path), roll_wait_s=0)
    rolled = Supervisor(settings, demo=False, commands=parts.Commands())
    rolled._slots = [None, None]
    rolled._children = supervisor._Children(
        gateways=[FakeChild(f"old gateway {number}", told, drained) for number in range(2)],
        worker=FakeChild("old worker", told, flushed),
    )
    monkeypatch.setattr(rolled, "_child", lambda _: FakeChild("worker", told))
    monkeypatch.setattr(rolled, "_gateway", lambda index: FakeChild(f"gateway {index}", told))
    rolling = asyncio.create_task(rolled._replace_all())
    await asyncio.sleep(0.02)
    assert told == ["worker started"]
    flushed.set()
    await rolling
    assert told == ["worker started", "old worker ended", "gateway 0 started", "gateway 1 started"]
    drained.set()
    await asyncio.gather(*rolled._retiring)
