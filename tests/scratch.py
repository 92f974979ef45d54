"""Where the engines of a test keep their files: in memory where there is enough, for a database is 1,700 files."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
_DISK = Path("/var/tmp")
_MEMORY_FREE_MIN_BYTES = 4 * 2**30


def scratch_directory(prefix: str) -> Path:
    """A new directory that the user `nobody` may pass through, which pytest's own temporary directories forbid."""
    in_memory = (
        _MEMORY.is_dir()
        and os.access(_MEMORY, os.W_OK | os.X_OK)
        and shutil.disk_usage(_MEMORY).free >= _MEMORY_FREE_MIN_BYTES
    )
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=_MEMORY if in_memory else _DISK))
    directory.chmod(0o711)
    return directory
