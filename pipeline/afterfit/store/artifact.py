"""A finished artifact, opened for reading. What is read is verified, and read only when it is asked for."""

import io
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from afterfit.errors import ArtifactError
from afterfit.lazy import LazyMapping
from afterfit.store.arrow import empty, memory_of
from afterfit.store.files import Files, trouble
from afterfit.store.manifest import NAME, DataFile, Manifest, Part, StoredTile, damaged

CHUNK_BYTES = 1 << 22


class StoredArtifact:
    """Tensors by family and tile, tables, and facts, below one place of a store.

    One that adopted others shows their tiles in the order of its parts, their tables one below the other, and
    their facts where it has none of that name. Pickles as its address: the other side opens it again.
    """

    def __init__(
        self, files: Files, place: str, digest: str, manifest: Manifest | None = None, owner: str | None = None
    ) -> None:
        self.place = place
        self.digest = digest
        self._files = files
        self._known = manifest
        self._owner = owner  # place of the artifact that adopted it, if it was opened there

    def __reduce__(self) -> tuple[type["StoredArtifact"], tuple[Files, str, str, None, str | None]]:
        return StoredArtifact, (self._files, self.place, self.digest, None, self._owner)

    @cached_property
    def _manifest(self) -> Manifest:
        manifest = self._known or open_artifact(self._files, self.place)._manifest
        if manifest.digest != self.digest:
            raise ArtifactError(f"{self.place} has changed since it was handed over: run the same command again.")
        return manifest

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r}, digest={self.digest[:16]!r})"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain values that belong to the content: those of its parts in their order, then its own."""
        return self._facts

    @cached_property
    def _facts(self) -> Mapping[str, Any]:
        below = {name: value for part in self.parts for name, value in part.facts.items()}
        return {**below, **self._manifest.facts}

    @property
    def about(self) -> Mapping[str, Any]:
        """Plain values that do not, and are not part of the digest."""
        return self._manifest.about

    @property
    def made_with(self) -> Mapping[str, Any]:
        """Versions, kind of device and threads that made it."""
        return self._manifest.made_with

    @cached_property
    def parts(self) -> tuple["StoredArtifact", ...]:
        """The artifacts that this one adopted, in order.

        Raises:
            ArtifactError: if one is missing, or is no longer the one that was adopted.
        """
        return tuple(self._open_part(part) for part in self._manifest.parts)

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families of tensors."""
        return _union(self._manifest.families, (part.families for part in self.parts))

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return _union(self._manifest.tables, (part.tables for part in self.parts))

    @property
    def num_bytes(self) -> int:
        """Bytes of the data files, adopted ones included."""
        return sum(file.bytes for file in self._manifest.files) + sum(part.num_bytes for part in self.parts)

    def tiles(self, family: str) -> Mapping[str, Tensor]:
        """Lazy mapping tile -> tensor, in the order written; each access reads and verifies one tile.

        Raises:
            ArtifactError: if there is no such family.
        """
        entries = self._entries(family)
        return LazyMapping({name: _reader(owner, tile) for name, (owner, tile) in entries.items()})

    def tensor(self, family: str) -> Tensor:
        """All tiles of a family, concatenated along the first dimension; scalars are rows of one.

        A single tile keeps its shape. Holds nothing but the result.

        Raises:
            ArtifactError: if there is no such family, it is empty, or its tiles do not fit each other.
        """
        entries = list(self._entries(family).values())
        if not entries:
            raise ArtifactError(f"{self.place} has no tiles of {family!r}: there is nothing to concatenate.")
        owner, first = entries[0]
        if len(entries) == 1:
            return owner.read_tile(first)
        if len({(tile.dtype, tile.shape[1:]) for _, tile in entries}) > 1:
            raise ArtifactError(f"The tiles of {family!r} in {self.place} differ in kind: read each alone.")
        rows = [tile.shape[0] if tile.shape else 1 for _, tile in entries]
        whole = empty(first.dtype, (sum(rows), *first.shape[1:]))
        for piece, (owner, tile) in zip(whole.split(rows), entries, strict=True):
            owner.read_into(piece, tile)
        return whole

    def table(self, name: str) -> pa.Table:
        """A table, whole.

        Raises:
            ArtifactError: if there is no such table, or its file is damaged.
        """
        own = [self._read_table(self._manifest.tables[name])] if name in self._manifest.tables else []
        tables = own + [part.table(name) for part in self.parts if name in part.tables]
        if not tables:
            known = ", ".join(self.tables) or "none"
            raise ArtifactError(f"{self.place} has no table {name!r}; it has {known}.")
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)

    def state(self) -> Mapping[str, Tensor]:
        """All families as one lazy state, named "family/tile"."""
        return LazyMapping(
            {
                f"{family}/{name}" if name else family: _reader(owner, tile)
                for family in self.families
                for name, (owner, tile) in self._entries(family).items()
            }
        )

    def verify(self) -> None:
        """Read every file, adopted ones included, and compare it with what was written.

        Raises:
            ArtifactError: naming the first file that differs.
        """
        for file in self._manifest.files:
            self._verify_file(file)
        for part in self.parts:
            part.verify()

    def read_tile(self, tile: StoredTile) -> Tensor:
        """One tensor of this artifact's own files, verified."""
        tensor = empty(tile.dtype, tile.shape)
        self.read_into(tensor, tile)
        return tensor

    def read_into(self, tensor: Tensor, tile: StoredTile) -> None:
        """The same into memory that is there. Reads the tile's bytes and nothing else."""
        file = self._manifest.files[tile.file]
        memory = memory_of(tensor)
        with self._open(file) as stream, trouble(self._files.uri, "read"):
            if stream.seek(0, io.SEEK_END) != file.bytes:
                raise self._damaged(file, "does not have the length that was written")
            stream.seek(tile.offset)
            filled = 0
            while filled < memory.nbytes:  # one read is at most 2 GB
                filled += stream.readinto(memory[filled:])
        if sha256(memory).hexdigest() != tile.sha256:
            raise self._damaged(file)

    def _entries(self, family: str) -> dict[str, tuple["StoredArtifact", StoredTile]]:
        if family not in self.families:
            raise ArtifactError(f"{self.place} has no tensors {family!r}; it has {', '.join(self.families) or 'none'}.")
        own = self._manifest.families.get(family, ())
        entries: dict[str, tuple[StoredArtifact, StoredTile]] = {tile.name: (self, tile) for tile in own}
        for part in self.parts:
            if family in part.families:
                entries.update(part._entries(family))
        return entries

    def content(self) -> dict[str, Any]:
        """Names and hashes of all that is in it: what a digest is made from."""
        own = {
            "families": {
                family: [[tile.name, tile.shape, tile.dtype, tile.sha256] for tile in tiles]
                for family, tiles in self._manifest.families.items()
            },
            "tables": {name: [self._manifest.files[file].sha256] for name, file in self._manifest.tables.items()},
            "facts": self._manifest.facts,
        }
        return union([*(part.content() for part in self.parts), own])

    def _open_part(self, part: Part) -> "StoredArtifact":
        manifest = read_manifest(self._files, part.place, self.place)
        if manifest is None or manifest.digest != part.digest:
            what = "is missing" if manifest is None else "has changed"
            raise ArtifactError(
                f"{part.place}, to which {self.place} refers, {what}: "
                f"delete the file {self.place}/{NAME} of the store, then run the same command again."
            )
        return StoredArtifact(self._files, part.place, part.digest, manifest, self.place)

    def _read_table(self, number: int) -> pa.Table:
        file = self._manifest.files[number]
        data = self._files.read(self._path(file))
        if data is None:
            raise self._damaged(file, "is missing")
        if len(data) != file.bytes or sha256(data).hexdigest() != file.sha256:
            raise self._damaged(file)
        return pq.read_table(pa.BufferReader(data))

    def _verify_file(self, file: DataFile) -> None:
        seen = sha256()
        with self._open(file) as stream, trouble(self._files.uri, "read"):
            while chunk := stream.read(CHUNK_BYTES):
                seen.update(chunk)
        if seen.hexdigest() != file.sha256:
            raise self._damaged(file)

    def _open(self, file: DataFile) -> Any:
        try:
            return self._files.open_input(self._path(file))
        except FileNotFoundError as error:
            raise self._damaged(file, "is missing") from error

    def _damaged(self, file: DataFile, what: str = "is damaged") -> ArtifactError:
        return damaged(self._path(file), self.place, what, self._owner)

    def _path(self, file: DataFile) -> str:
        return f"{self.place}/{file.name}"


def read_manifest(files: Files, place: str, owner: str | None = None) -> Manifest | None:
    """The marker of a place, maybe of one that `owner` adopted; None where there is none.

    Raises:
        ArtifactError: if it is damaged.
    """
    data = files.read(f"{place}/{NAME}")
    return None if data is None else Manifest.from_bytes(data, place, owner)


def open_artifact(files: Files, place: str) -> StoredArtifact:
    """The finished artifact of a place.

    Raises:
        ArtifactError: if there is none, or its marker is damaged.
    """
    manifest = read_manifest(files, place)
    if manifest is None:
        raise ArtifactError(
            f"{place} is not finished in the store {files.uri}: run the command that makes it, or check the name."
        )
    return StoredArtifact(files, place, manifest.digest, manifest)


def union(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Contents one after another, as if one artifact held them: how they were divided leaves no trace."""
    whole: dict[str, Any] = {"families": {}, "tables": {}, "facts": {}}
    for content in contents:
        for kind in ("families", "tables"):
            for name, entries in content[kind].items():
                whole[kind].setdefault(name, []).extend(entries)
        whole["facts"].update(content["facts"])
    return whole


def _reader(owner: StoredArtifact, tile: StoredTile) -> Callable[[], Tensor]:
    return lambda: owner.read_tile(tile)


def _union(own: Iterable[str], others: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*own, *(name for names in others for name in names)]))
