"""The marker of a finished artifact: what its data files are called, hold and hash to."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from afterfit.errors import ArtifactError, ConfigError

FORMAT = 1
NAME = "manifest.json"


class DataFile(NamedTuple):
    """One data file beside the manifest."""

    name: str
    bytes: int
    sha256: str


class StoredTile(NamedTuple):
    """Where one tensor lies."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str  # of its values, row by row
    file: int  # which of the manifest's files
    offset: int  # of its first value in the file, in bytes


class Part(NamedTuple):
    """A finished artifact that an adopting one refers to."""

    place: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about an artifact but its data."""

    attempt: str  # tells the writers of a race apart; part of no digest
    files: tuple[DataFile, ...] = ()
    families: Mapping[str, tuple[StoredTile, ...]] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)  # name -> which of the files
    parts: tuple[Part, ...] = ()
    union: str = ""  # hash of the content of all parts together, however it is divided among them
    facts: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 of the content: names, shapes, dtypes, values, facts, adopted or own; not of when, where, by whom."""
        content = {
            "families": {
                family: [[tile.name, tile.shape, tile.dtype, tile.sha256] for tile in tiles]
                for family, tiles in self.families.items()
            },
            "tables": {name: self.files[file].sha256 for name, file in self.tables.items()},
            "union": self.union,
            "facts": self.facts,
        }
        return content_hash(content)

    def to_bytes(self) -> bytes:
        """As JSON, sealed with the hash of itself."""
        record = {"format": FORMAT, **asdict(self), "digest": self.digest}
        return json.dumps({**record, "seal": content_hash(record)}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, place: str, owner: str | None = None) -> "Manifest":
        """The inverse of `to_bytes`; place and owner are for messages.

        Raises:
            ArtifactError: if a byte changed, or another version of the format wrote it.
        """
        try:
            record = json.loads(data)
        except ValueError as error:
            raise damaged(f"{place}/{NAME}", place, owner=owner) from error
        written = record.get("format") if isinstance(record, dict) else None
        if not isinstance(written, int):
            raise damaged(f"{place}/{NAME}", place, owner=owner)
        if written != FORMAT:
            raise ArtifactError(
                f"{place}/{NAME} is in store format {written} and this version reads format {FORMAT}: "
                "use the version of afterfit that wrote it, or another store."
            )
        if record.pop("seal", None) != content_hash(record):
            raise damaged(f"{place}/{NAME}", place, owner=owner)
        return cls(
            attempt=record["attempt"],
            files=tuple(DataFile(*file) for file in record["files"]),
            families={
                family: tuple(StoredTile(name, tuple(shape), *rest) for name, shape, *rest in tiles)
                for family, tiles in record["families"].items()
            },
            tables=record["tables"],
            parts=tuple(Part(*part) for part in record["parts"]),
            union=record["union"],
            facts=record["facts"],
            about=record["about"],
            made_with=record["made_with"],
        )


def damaged(file: str, place: str, what: str = "is damaged", owner: str | None = None) -> ArtifactError:
    """The sentence for a file whose bytes are not those that were written.

    Args:
        file: which.
        place: of its artifact.
        what: is wrong with it.
        owner: place of the artifact that adopted it; only without that one's marker is the missing piece made again.
    """
    marker = f" and the file {owner}/{NAME}" if owner else ""
    return ArtifactError(
        f"{file} {what}: delete the folder {place}{marker} of the store, then run the same command again."
    )


def plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values as JSON gives them back.

    Raises:
        ConfigError: naming the value that JSON cannot hold.
    """
    for name, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{what} {name!r} cannot be stored: {error}. Use plain numbers and strings.") from error
    return json.loads(json.dumps(dict(values)))


def made_with() -> dict[str, Any]:
    """The arithmetic that made an artifact: versions, kind of device, threads.

    A GPU is named only once this process has used it: asking wakes it, and costs memory.
    """
    cuda = torch.cuda.is_initialized()
    try:
        afterfit = version("afterfit")
    except PackageNotFoundError:
        afterfit = "not installed"
    return {
        "afterfit": afterfit,
        "torch": torch.__version__,
        "pyarrow": pa.__version__,
        "device": torch.cuda.get_device_name() if cuda else f"cpu {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def content_hash(value: Any) -> str:
    """Of plain JSON values."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
