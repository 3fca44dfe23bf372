"""The local folder where tables are kept in a form that can be memory-mapped. It may be deleted any time."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from afterfit.errors import StoreError


def scratch_folder() -> Path:
    """$AFTERFIT_CACHE, or the usual place for caches of this user. Each machine has its own."""
    chosen = os.environ.get("AFTERFIT_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "afterfit"


def write_once(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all. Two processes that write the same one do no harm.

    Raises:
        StoreError: if the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"The cache folder {str(path.parent)!r} cannot be written ({error.strerror}); "
        "free space there or set AFTERFIT_CACHE to another folder."
    )
