"""The command `obol fake-provider`."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_calls import CHAT, chat, events

from gateway.local import fake_provider
from gateway.testing import steering_header


def start(ready_file: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    command = "import sys; from gateway.local.fake_provider import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", command, "--ready-file", str(ready_file), *arguments])
    try:
        return process, await_file(process, ready_file)
    except BaseException:
        process.kill()
        raise


def await_file(process: subprocess.Popen[bytes], path: Path) -> dict[str, Any]:
    for _ in range(200):
        if path.exists():
            return json.loads(path.read_bytes())
        if process.poll() is not None:
            raise AssertionError(f"the fake provider ended with {process.returncode}")
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("the fake provider was not ready within 10 s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_until_it_is_told_to_stop(http, tmp_path, number):
    process, ready = await asyncio.to_thread(start, tmp_path / "ready", "--chunk-delay-ms", "0", "--chunks", "3")
    try:
        assert ready["pid"] == process.pid
        async with http.post(ready["url"] + CHAT, json=chat(stream=True)) as response:
            assert len(events(await response.read())) == 1 + 3 + 1
        with pytest.raises(aiohttp.ClientOSError):
            headers = steering_header(fault="reset_before_first_byte")
            await http.post(ready["url"] + CHAT, json=chat(), headers=headers)
    finally:
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 10) == 0


async def test_the_command_refuses_what_it_cannot_use(tmp_path, capsys, provider):
    taken = provider.url.rpartition(":")[2]
    assert fake_provider.main(["--fault", "none_such"]) == 2
    assert "none_such" in capsys.readouterr().err
    assert fake_provider.main(["--replay", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    with pytest.raises(AssertionError, match="ended with 1"):
        await asyncio.to_thread(start, tmp_path / "ready", "--port", taken)


def test_a_ready_file_of_an_earlier_run_is_removed(tmp_path):
    stale = tmp_path / "ready"
    stale.write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert fake_provider.main(["--port", port, "--ready-file", str(stale)]) == 1
    assert not stale.exists()
