"""The command line: help, usage errors, one line for a bad installation, and the environment of a running `obol up`."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import __main__ as command_line
from gateway import sockets
from gateway.local import listen
from gateway.local.data_dir import DataDir
from gateway.local.parts import demo_environment
from gateway.local.welcome import text
from gateway.settings import Settings

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["up", "serve", "worker", "migrate", "check", "audit", "fake-provider"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.main([name, "--help"])
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["up", "--port", "70000"], "'70000' is not a port"),
        (["up", "--workers", "0"], "'0' is not a number of processes"),
        (["serve", "--demo"], "unrecognized arguments: --demo"),
        (["serve", "--fd", "2"], "'2' is not an inherited descriptor"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_a_bad_setting_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OBOL_LEDGER_SHARDS", "0")
    assert command_line.main(["up"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("obol: ")
    assert "ledger_shards" in error
    assert error.count("\n") == 1


def test_help_loads_no_heavy_module() -> None:
    program = "import sys, gateway.__main__ as m; m.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert {"aiohttp", "asyncio", "asyncpg", "redis", "tiktoken", "uvloop"}.isdisjoint(done.stdout.split())


def test_a_command_finds_the_running_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OBOL_", "PROMETHEUS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    options = argparse.Namespace(data_dir=tmp_path)
    data = DataDir(tmp_path)
    data.create()
    with data.owned():
        data.publish_environment({"OBOL_REDIS_URL": "redis://up", "OBOL_POSTGRES_URL": "postgresql://up"})
        assert command_line._settings(options).redis_url == "redis://up"
        monkeypatch.setenv("OBOL_REDIS_URL", "redis://mine")
        settings = command_line._settings(options)
        assert (settings.redis_url, settings.postgres_url) == ("redis://mine", "postgresql://up")
        assert settings.data_dir == str(tmp_path)
    monkeypatch.delenv("OBOL_REDIS_URL")
    assert command_line._settings(options).redis_url == ""


def test_a_reserved_port_is_shared_with_gateways_only() -> None:
    with listen.reserve("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
        assert listen.ready_status("127.0.0.1", port).startswith("no answer")
        with listen.reserve("127.0.0.1", port) as second:
            assert second.getsockname()[1] == port


def test_slots_are_sockets_of_one_port() -> None:
    with listen.slots("127.0.0.1", 0, 3) as slots:
        assert len({each.fileno() for each in slots}) == 3
        assert len({each.getsockname() for each in slots}) == 1
    assert [each.fileno() for each in slots] == [-1] * 3


@pytest.mark.parametrize("kind", ["closed", "file", "datagram", "unbound"])
def test_a_descriptor_that_cannot_be_listened_on_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    opened = {
        "closed": lambda: os.pipe()[0],
        "file": lambda: os.open(tmp_path, os.O_RDONLY),
        "datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).detach(),
        "unbound": lambda: socket.socket().detach(),
    }
    descriptor = opened[kind]()
    if kind == "closed":
        os.close(descriptor)
    with pytest.raises(command_line.ConfigurationError, match=f"--fd: cannot listen on descriptor {descriptor}: "):
        sockets.inherited(descriptor)


@pytest.mark.parametrize(
    ("host", "words"),
    [("203.0.113.1", "is not an address of this machine"), ("no such host", "is not an address of this machine")],
)
def test_a_host_that_is_not_ours(host: str, words: str) -> None:
    with pytest.raises(command_line.ConfigurationError, match=words):
        listen.reserve(host, 0)


def test_urls_by_which_this_machine_reaches_a_server() -> None:
    hosts = ("127.0.0.1", "0.0.0.0", "::", "::1", "gateway.example")
    assert [listen.url_of(host, 80) for host in hosts] == [
        "http://127.0.0.1:80",
        "http://127.0.0.1:80",
        "http://[::1]:80",
        "http://[::1]:80",
        "http://gateway.example:80",
    ]


def test_an_origin_shared_with_a_provider_of_which_we_have_a_key_is_real() -> None:
    providers = [("a", ("https://x", "https://y")), ("B", ("https://y", "https://z")), ("c", ("https://w",))]
    settings = Settings(provider_keys={"b": "key"}, upstream_map={"https://w": "http://mine"}, test_mode=True)
    assert demo_environment(settings, providers, "http://fake/") == {
        "OBOL_TEST_MODE": "1",
        "OBOL_UPSTREAM_MAP": '{"https://w": "http://mine", "https://x": "http://fake"}',
    }


def test_the_welcome_says_where_postgres_lies(tmp_path: Path) -> None:
    state = {"base_url": "B", "dashboard_url": "D", "metrics_url": "M", "postgres_pid": 1, "fake_provider_url": None}
    assert "back it up" not in text(state, tmp_path, None)
    (tmp_path / "postgres").symlink_to("/elsewhere")
    assert "/elsewhere (PostgreSQL; part of the data: back it up too)" in text(state, tmp_path, None)
