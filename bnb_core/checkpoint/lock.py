"""One run at a time in a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import CheckpointError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which leaves no file and ends with the process at the latest.

    Windows, and file systems that cannot lock a folder (some of networks), go without.

    Raises CheckpointError where another run holds it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    busy = f"another run is writing {folder}: wait for it, or choose another name"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(busy) from None
    except OSError:  # no locks on this file system
        return
    # The other run may have finished and renamed the folder between our opening and our locking it.
    if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
        raise CheckpointError(busy)
