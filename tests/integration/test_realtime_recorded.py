"""Recorded realtime sessions through a running gateway: the same frames at both ends, usage as recorded, exact sums."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from realtime_replay import DIRECTORY, ReplayProvider, frames_of, recordings
from running import RunningGateway, running_gateway

from gateway.app import _mapped
from gateway.core.money import NANO
from gateway.testing import FakeProvider

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not DIRECTORY.is_dir(), reason=f"the recordings are not at {DIRECTORY}"),
]
SESSIONS = recordings("openai", "azure", "xai")
OPENAI = "https://api.openai.com"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


def told(usage: dict[str, Any]) -> dict[str, int]:
    """The recorded usage in our names; a class that was not told is left out."""
    inputs, outputs = usage.get("input_token_details", {}), usage.get("output_token_details", {})
    named = {
        "input_tokens": usage["input_tokens"],
        "cached_input_tokens": inputs.get("cached_tokens"),
        "input_audio_tokens": inputs.get("audio_tokens"),
        "output_tokens": usage["output_tokens"],
        "output_audio_tokens": outputs.get("audio_tokens"),
    }
    return {name: value for name, value in named.items() if value is not None}


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
async def test_a_recorded_session_passes_unchanged_and_costs_what_it_used(gateway: RunningGateway, path: Path):
    frames, expected = frames_of(path)
    customer = await gateway.customer()
    async with ReplayProvider().serving() as provider:
        provider.frames = frames
        gateway.parts.origins[OPENAI] = _mapped(OPENAI, provider.url)
        await played(gateway, gateway.token_for(customer), provider)
        async with asyncio.timeout(5):
            while (await gateway.balance(customer)).calls:
                await asyncio.sleep(0.01)
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    responses = [row for row in rows if row["response_id"] is not None]
    transcribed = [row["usage"].get("input_us") for row in rows if row["response_id"] is None]
    usages = [told(usage) for usage in expected["usages"]]
    assert [{name: row["usage"].get(name) for name in usage} for row, usage in zip(responses, usages, strict=True)] == (
        usages
    )
    seconds = [usage["seconds"] * 1_000_000 for usage in expected["transcription_usages"]]
    if "xai" not in path.stem:  # which transcribes without telling a length
        assert transcribed == seconds
        assert not any(row["estimated"] for row in rows)
    tokens = sum(row["usage"].get("input_tokens", 0) + row["usage"].get("output_tokens", 0) for row in rows)
    balance = await gateway.balance(customer)
    assert 25 * NANO - balance.total_nano == 20_000 * tokens == sum(row["charge_nano"] for row in rows)


async def played(gateway: RunningGateway, credential: str, provider: ReplayProvider) -> None:
    """Play the client's side of what the provider plays."""
    url = f"{gateway.url}/v1/realtime?model=gpt-realtime"
    async with gateway.session.ws_connect(
        url, headers={"Authorization": f"Bearer {credential}"}, max_msg_size=0
    ) as socket:
        for direction, text in provider.frames:
            if direction == "sent":
                await socket.send_str(text)
            else:
                message = await socket.receive(timeout=10)
                assert (message.type, message.data) == (aiohttp.WSMsgType.TEXT, text)
        sent = [text for direction, text in provider.frames if direction == "sent"]
        async with asyncio.timeout(5):
            while len(provider.received) < len(sent):
                await asyncio.sleep(0.01)
        assert provider.received == sent


async def test_every_recorded_session_of_the_protocol_is_replayed(capsys: pytest.CaptureFixture[str]):
    responses = sum(len(frames_of(path)[1]["usages"]) for path in SESSIONS)
    transcriptions = sum(len(frames_of(path)[1]["transcription_usages"]) for path in SESSIONS)
    with capsys.disabled():
        print(f"\nrealtime: {len(SESSIONS)} sessions, {responses} responses, {transcriptions} transcriptions")
    assert (len(SESSIONS), transcriptions) == (14, 4)
