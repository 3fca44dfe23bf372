"""Files on a local or shared disk, durable once they are finished."""

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from afterfit.errors import StoreError
from afterfit.store.files import trouble

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class LocalFiles:
    """Files below a folder. A file is made whole under a hidden name, then linked or renamed."""

    def __init__(self, uri: str) -> None:
        parsed = urlsplit(uri)
        if parsed.netloc not in {"", "localhost"} or parsed.query:
            raise StoreError(f"No store can be opened at {uri}: write file:///absolute/path or a path.")
        self._root = Path(unquote(parsed.path))
        self.uri = str(self._root)

    def prepare(self) -> None:
        """Make the folder; a store that can only be read may still be opened."""
        with trouble(self.uri, "opened"):
            _make_folder(self._root)
            with os.scandir(self._root):
                pass

    def open_output(self, path: str) -> BinaryIO:
        """A stream into a new file."""
        with trouble(self.uri, "written"):
            _make_folder((self._root / path).parent)
            return (self._root / path).open("xb")

    def finish(self, stream: BinaryIO) -> None:
        """Close after the bytes reached the disk."""
        with trouble(self.uri, "written"), stream:
            stream.flush()
            os.fsync(stream.fileno())

    def open_input(self, path: str) -> BinaryIO:
        """A stream without a buffer of its own: reads go straight into the tensor."""
        try:
            return (self._root / path).open("rb", buffering=0)
        except FileNotFoundError:
            raise
        except OSError:
            with trouble(self.uri, "read"):
                raise

    def read(self, path: str) -> bytes | None:
        """A small file, whole; None where there is none."""
        with trouble(self.uri, "read"):
            try:
                return (self._root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def size(self, path: str) -> int | None:
        """Bytes; None where there is none."""
        with trouble(self.uri, "read"):
            try:
                return (self._root / path).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def create(self, path: str, data: bytes) -> bool:
        """Link a finished file to its name: a link is made once, and never shows half a file."""
        target = self._root / path
        hidden = self._hidden(target, data)
        try:
            os.link(hidden, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in NO_LINKS:
                raise StoreError(
                    f"The store {self.uri} cannot be written: its file system has no hard links. "
                    "Take another store (--store)."
                ) from error
            with trouble(self.uri, "written"):
                raise
        finally:
            self.delete(os.path.relpath(hidden, self._root))
        with trouble(self.uri, "written"):
            _sync_folder(target.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Rename a finished file over the old one."""
        target = self._root / path
        hidden = self._hidden(target, data)
        with trouble(self.uri, "written"):
            hidden.replace(target)

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        with trouble(self.uri, "changed"):
            (self._root / path).unlink(missing_ok=True)

    def delete_below(self, path: str) -> None:
        """Remove a folder with everything in it, if it is there."""
        with trouble(self.uri, "changed"):
            if (self._root / path).exists():
                shutil.rmtree(self._root / path)

    def below(self, path: str) -> list[str]:
        """Paths of all files in a folder and its folders, without hidden ones."""
        with trouble(self.uri, "read"):
            found = [
                os.path.relpath(os.path.join(folder, name), self._root)
                for folder, _, names in os.walk(self._root / path)
                for name in names
                if not name.startswith(".")
            ]
        return sorted(name.replace(os.sep, "/") for name in found)

    def _hidden(self, target: Path, data: bytes) -> Path:
        """A finished file beside `target`, under a name of its own."""
        hidden = target.parent / f".{target.name}.{uuid4().hex}"
        with trouble(self.uri, "written"):
            _make_folder(target.parent)
            try:
                with hidden.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError:
                hidden.unlink(missing_ok=True)
                raise
        return hidden


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that a crash of the machine does not lose their names."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
