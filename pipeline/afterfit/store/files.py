"""Bytes at a URI: what the store asks of a file system, and which one serves a scheme."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from afterfit.errors import StoreError

REMEDIES = {
    errno.ENOSPC: "the disk is full. Free some space and run the same command again; what is done is kept.",
    errno.EDQUOT: "the quota is used up. Free some and run the same command again; what is done is kept.",
    errno.EFBIG: "a file would exceed the size limit. Raise it (ulimit -f) or take another store (--store).",
    errno.EACCES: "permission is denied. Change the owner or the mode, or take another store (--store).",
    errno.EPERM: "permission is denied. Change the owner or the mode, or take another store (--store).",
    errno.EROFS: "it is mounted read-only. Take another store (--store).",
    errno.ENOTDIR: "part of the path is a file. Take another store (--store).",
    errno.EEXIST: "part of the path is a file. Take another store (--store).",
}
OTHERWISE = "Check the path, the network and the credentials, then run the same command again."


class Files(Protocol):
    """Files below one root, named by relative paths with "/". Cheap to pickle.

    Reading what is not there is a FileNotFoundError or None, as stated; every other failure is a StoreError.
    """

    uri: str

    def prepare(self) -> None:
        """Make the root where that is possible, and see that it can be read."""
        ...

    def open_output(self, path: str) -> BinaryIO:
        """A stream into a new file; folders are made."""
        ...

    def finish(self, stream: BinaryIO) -> None:
        """Close a stream so that its bytes survive a crash of the machine."""
        ...

    def open_input(self, path: str) -> BinaryIO:
        """A stream that can seek. FileNotFoundError where there is none."""
        ...

    def read(self, path: str) -> bytes | None:
        """A small file, whole; None where there is none."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes; None where there is none."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file all at once if there is none, else return False. Of two racers one wins."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write a small file all at once, over what was there."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...

    def delete_below(self, path: str) -> None:
        """Remove a folder with everything in it, if it is there."""
        ...

    def below(self, path: str) -> list[str]:
        """Paths of all files in a folder and its folders, sorted, relative to the root."""
        ...


SCHEMES = {
    "file": ("afterfit.store.local_files", "LocalFiles"),
    "s3": ("afterfit.store.object_files", "S3Files"),
    "gs": ("afterfit.store.object_files", "GcsFiles"),
}


def files_at(uri: str) -> Files:
    """The files at a local path, or a file://, s3:// or gs:// URI. Touches nothing yet.

    Raises:
        StoreError: for any other scheme.
    """
    if "://" not in uri:
        uri = Path(uri).expanduser().absolute().as_uri()
    scheme = urlsplit(uri).scheme
    if scheme not in SCHEMES:
        raise StoreError(f"No store can be opened at {uri}: use a local path, or file://, s3:// or gs://.")
    module, name = SCHEMES[scheme]
    files: Any = getattr(import_module(module), name)
    return files(uri)


@contextmanager
def trouble(uri: str, doing: str) -> Iterator[None]:
    """Turn failures of the operating system into one sentence with the remedy."""
    try:
        yield
    except OSError as error:
        raise store_error(uri, doing, error) from error


def store_error(uri: str, doing: str, error: Exception) -> StoreError:
    """The sentence for one failure."""
    remedy = REMEDIES.get(getattr(error, "errno", None) or 0)
    if remedy is None:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"{first.rstrip('.')}. {OTHERWISE}"
    return StoreError(f"The store {uri} cannot be {doing}: {remedy}")
