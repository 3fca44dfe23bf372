"""A file that the data come from: what identifies it, and the check that it has not changed since."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from afterfit.data.locate import Found, file_system, is_remote
from afterfit.data.scratch import write_once
from afterfit.errors import DataError


@dataclass(slots=True)
class DataFile:
    """A file with the identity that it had when it was first seen."""

    name: str  # relative to the root of the data set
    address: str  # where to open it
    num_bytes: int
    digest: str  # "sha256:..." of its bytes, or "etag:..." as an object store tells
    stamp: int  # time of its last change, ns; 0 where `digest` is cheap to ask for again

    @classmethod
    def of(cls, found: Found, scratch: Path) -> "DataFile":
        """Look at a file. A local one is hashed, unless its size and time are known from before."""
        if is_remote(found.address):
            num_bytes, digest = _remote_identity(found.address)
            return cls(found.name, found.address, num_bytes, digest, 0)
        stat = os.stat(found.address)
        digest = _recorded_digest(found.address, stat, scratch)
        return cls(found.name, found.address, stat.st_size, digest, stat.st_mtime_ns)

    @property
    def is_local(self) -> bool:
        """Whether it can be memory-mapped."""
        return not is_remote(self.address)

    def identity(self) -> dict[str, Any]:
        """Name, size and digest: what enters a stage's key."""
        return {"name": self.name, "bytes": self.num_bytes, "digest": self.digest}

    def open(self) -> IO[bytes]:
        """For reading, from the start.

        Raises:
            DataError: if the file cannot be read.
        """
        if self.is_local:
            return _open(self.address)
        system, path = file_system(self.address)
        return cast(IO[bytes], system.open(path, "rb"))

    def check(self) -> None:
        """Refuse a file that is no longer what was identified. A local one costs one `stat`.

        Raises:
            DataError: names the file.
        """
        try:
            if self.is_local:
                stat = os.stat(self.address)
                if (stat.st_size, stat.st_mtime_ns) == (self.num_bytes, self.stamp):
                    return
                now = (stat.st_size, _sha256(self.address) if stat.st_size == self.num_bytes else "")
                self.stamp = stat.st_mtime_ns if now == (self.num_bytes, self.digest) else self.stamp
            else:
                now = _remote_identity(self.address)
        except FileNotFoundError as error:
            raise DataError(f"The data file {self.name!r} has gone since it was first read; put it back.") from error
        if now != (self.num_bytes, self.digest):
            raise DataError(
                f"The data file {self.name!r} has changed since it was first read; "
                "restore it, or run again to start from the new data."
            )


def _remote_identity(address: str) -> tuple[int, str]:
    system, path = file_system(address)
    system.invalidate_cache()
    info: Mapping[str, Any] = system.info(path)
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if tag is not None:
        return int(info["size"]), "etag:" + str(tag).strip('"')
    with system.open(path, "rb") as stream:
        return int(info["size"]), "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _recorded_digest(address: str, stat: os.stat_result, scratch: Path) -> str:
    """Cost: one read of the file the first time, nothing while its path, size and time stay."""
    known = hashlib.sha256(f"{address}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    record = scratch / "digests" / f"{known[:32]}.json"
    try:
        return str(json.loads(record.read_text())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, damaged, or another user's: it is only a short cut
    digest = _sha256(address)
    write_once(record, lambda stream: stream.write(json.dumps({"digest": digest}).encode()))
    return digest


def _open(address: str) -> BufferedReader:
    try:
        return open(address, "rb")
    except OSError as error:
        raise DataError(f"The data file {address!r} cannot be read ({error.strerror}); make it readable.") from error


def _sha256(address: str) -> str:
    with _open(address) as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
