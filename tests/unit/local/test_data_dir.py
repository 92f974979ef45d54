"""The data directory: locks, private files, what a killed supervisor leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from gateway.local import data_dir as data_dir_module
from gateway.local.data_dir import DataDir, Locked, locked, read_json, write_private


def test_a_lock_excludes_others_and_is_freed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, 0), pytest.raises(Locked), locked(path, 0.05):
        pass
    with locked(path, 0) as descriptor:
        assert not os.get_inheritable(descriptor)


def test_a_child_keeps_the_lock_that_it_inherited(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, 0) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    with pytest.raises(Locked), locked(path, 0):
        pass
    child.communicate(b"\n")
    with locked(path, 0):
        pass


def test_write_private_replaces_whole_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "up.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"up\.json"):
        read_json(path)


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none") is None


def test_a_running_environment_is_seen_only_while_the_supervisor_lives(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    assert data.running_environment() == {}
    data.create()
    with data.owned():
        data.publish_environment({"OBOL_REDIS_URL": "redis://x"})
        assert data.running_environment() == {"OBOL_REDIS_URL": "redis://x"}
    assert data.env_json.exists()
    assert data.running_environment() == {}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system does not tell")
def test_what_the_supervisor_was_given_is_seen_too_and_no_file_holds_it(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.create()
    environment = {
        "OBOL_PROVIDER_KEY_OPENAI": "sk-canary",
        "OBOL_REDIS_URL": "redis://given",
        "OBOL_CONFIG": "mine.toml",
        "OBOL_POSTGRES_URL": "",
        "OTHER": "x",
    }
    with subprocess.Popen(("sleep", "60"), env=os.environ | environment, cwd=tmp_path) as supervisor, data.owned():
        try:
            data.publish({"pid": supervisor.pid})
            data.publish_environment({"OBOL_REDIS_URL": "redis://published"})
            found = data.running_environment()
        finally:
            supervisor.kill()
    assert {name: found.get(name) for name in environment} == {
        "OBOL_PROVIDER_KEY_OPENAI": "sk-canary",
        "OBOL_REDIS_URL": "redis://published",
        "OBOL_CONFIG": str(tmp_path / "mine.toml"),
        "OBOL_POSTGRES_URL": None,
        "OTHER": None,
    }
    assert not [path for path in data.root.rglob("*") if path.is_file() and b"sk-canary" in path.read_bytes()]


@pytest.mark.parametrize("pid", [None, "x", 2**22 + 1, -1])
def test_a_process_that_cannot_be_asked_has_no_variables(pid: object) -> None:
    assert data_dir_module._variables_of(pid) == {}


def test_taking_over_clears_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.create()
    data.publish({"pid": 1})
    (data.metrics / "counter_1.db").write_bytes(b"x")
    (data.run / "gateway-1.json").write_text("{}")
    (data.logs / "gateway-1.log").write_text("kept")
    with data.owned():
        assert not data.up_json.exists()
        assert list(data.metrics.iterdir()) == list(data.run.iterdir()) == []
        assert (data.logs / "gateway-1.log").read_text() == "kept"


def test_only_one_owner(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.create()
    with data.owned():
        data.publish({"pid": 77, "base_url": "http://127.0.0.1:1/v1/"})
        with pytest.raises(ConfigurationError, match=r"pid 77, http://127"), DataDir(tmp_path / "data").owned():
            pass


def test_the_master_key_is_made_once(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    assert data.master_key() == DataDir(tmp_path).master_key()
    assert len(bytes.fromhex(data.master_key())) == 32


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        DataDir(tmp_path / "data").create()
