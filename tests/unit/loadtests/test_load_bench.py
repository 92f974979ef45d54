from __future__ import annotations

import asyncio
import os
import socket

import pytest
from load_servers import Scripted, serving

from loadtests import procfs
from loadtests.bench.figures import FLOORS, Figures, judge, table
from loadtests.bench.measure import MeasurementError, added_p50_us, chat_cost
from loadtests.peers.servers import Server, bare_aiohttp, fast_provider, nginx, nginx_binary


def figures(name: str, cpu_us: float, **others: float) -> Figures:
    return Figures(
        name, request_cpu_us=[cpu_us, cpu_us * 3, cpu_us], **{field: [value] for field, value in others.items()}
    )


def test_a_floor_counts_in_nginxs_cpu_and_takes_the_median_round() -> None:
    nginx_figures, obol = figures("nginx", 20.0), figures("Obol", 179.0, added_p50_us=701.0)
    kept = {judgement.floor: judgement.kept for judgement in judge([nginx_figures, obol])}
    assert kept == dict.fromkeys((floor.name for floor in FLOORS), None) | {
        FLOORS[0].name: True,
        FLOORS[1].name: False,
    }
    shown = table([nginx_figures, obol])
    assert "8.95x" in shown and "EXCEEDED" in shown and "not measured" in shown


def test_the_burst_counts_in_the_bare_pass_throughs_cpu() -> None:
    burst = [figures("bare aiohttp", 1.0, burst_cpu_us=400.0), figures("Obol", 1.0, burst_cpu_us=680.0)]
    found = {judgement.floor: judgement for judgement in judge(burst)}["CPU us a stream of 52 events sent at once"]
    assert (found.measured, found.kept, found.unit) == (1.7, False, "x bare aiohttp")


def test_without_nginx_its_floor_is_not_judged() -> None:
    assert judge([figures("Obol", 100.0)])[0].kept is None
    assert "Obol" in table([figures("Obol", 100.0)])


def test_cpu_and_memory_of_a_listening_process_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pids = procfs.listeners(listener.getsockname()[1])
    usage = procfs.usage(pids)
    assert pids == (os.getpid(),)
    assert usage.cpu_us > 0 and usage.memory_bytes > 5_000_000
    assert os.getpid() in procfs.descendants(os.getppid())
    assert procfs.usage((2**22 + 1,)).pids == ()


async def test_a_round_measures_the_bare_pass_through() -> None:
    with fast_provider() as provider, bare_aiohttp(provider.url) as bare:
        cost = await chat_cost(bare, 0.4)
        added = await added_p50_us(provider, [bare], 30)
    assert cost.events > 20
    assert 10 < cost.server_us == cost.everything_us < 20_000
    assert 0 < added["bare aiohttp"] < 50_000


@pytest.mark.skipif(nginx_binary() is None, reason="nginx is not installed")
async def test_a_round_measures_nginx() -> None:
    with fast_provider() as provider, nginx(provider.url) as server:
        cost = await chat_cost(server, 0.4)
    assert cost.events > 20 and cost.server_us > 1


async def test_refused_requests_are_no_figure() -> None:
    answer = b"HTTP/1.1 402 Payment Required\r\nContent-Length: 0\r\n\r\n"
    async with serving(lambda: Scripted(answer, lambda: 0.01)) as url, asyncio.timeout(10):
        with pytest.raises(MeasurementError, match="Obol: status 402"):
            await chat_cost(Server("Obol", url, os.getpid()), 0.1)
