"""A store: a directory of finished artifacts and small records, on a disk or in an object store."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from afterfit.algebra import Result
from afterfit.errors import ArtifactError, ConfigError, StoreError
from afterfit.store.artifact import StoredArtifact, open_artifact, read_manifest, union
from afterfit.store.attempt import Attempt
from afterfit.store.files import Files, files_at
from afterfit.store.manifest import NAME, Manifest, Part, content_hash, made_with, plain

GOOD_PLACE = re.compile(r"[A-Za-z0-9_][^/\\\x00-\x1f]*(/[A-Za-z0-9_][^/\\\x00-\x1f]*)*")
DATA_SUFFIXES = (f"/{NAME}", ".arrow", ".parquet")
MARK_TRIES = 8


def open_store(uri: str) -> "Store":
    """Open a store, and make it where it is a local directory.

    Args:
        uri: a local path, or file://, s3://bucket/prefix or gs://bucket/prefix, where the last two may end in
            ?endpoint_override=http://host:port. Credentials come from the environment.

    Raises:
        StoreError: for an unknown scheme, a missing bucket, or a place that cannot be read or made.
    """
    files = files_at(uri)
    files.prepare()
    return Store(files)


class Store:
    """Artifacts at places such as "gram/1a2b/unit/shard-00001". An artifact is there once its marker is.

    Cheap to pickle. Safe for any number of writers: of two that finish one place, one wins and both get its
    artifact.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    @property
    def uri(self) -> str:
        """What `open_store` takes to open it again, from any working directory."""
        return self._files.uri

    def find(self, place: str) -> StoredArtifact | None:
        """The artifact at a place, or None where there is no marker. One small read.

        Raises:
            ArtifactError: if the marker is damaged or of another format.
        """
        manifest = read_manifest(self._files, _checked(place))
        return None if manifest is None else StoredArtifact(self._files, place, manifest.digest, manifest)

    def read(self, place: str) -> StoredArtifact:
        """The artifact at a place.

        Raises:
            ArtifactError: if there is none, or the marker is damaged or of another format.
        """
        return open_artifact(self._files, _checked(place))

    def write(self, place: str, result: Result, about: Mapping[str, Any] | None = None) -> StoredArtifact:
        """Write a result and mark it finished. Where the place is finished already, nothing is written.

        Args:
            place: where.
            result: what; at most one tile of a lazy one is held.
            about: plain values for the manifest that are not content, such as the recipe.

        Returns:
            The artifact at the place, which may be that of another writer who was faster.

        Raises:
            StoreError: if the store cannot be written; what is finished is kept.
            ConfigError: if a value or a name cannot be stored.
        """
        found = self.find(place)
        if found:
            return found
        facts, told = plain(result.facts, "The fact"), plain(about or {}, "The value")
        attempt = Attempt(self._files, place)
        try:
            manifest = Manifest(
                attempt=attempt.name,
                families={family: attempt.tensors(family, tiles) for family, tiles in result.tensors.items()},
                tables={name: attempt.table(name, table) for name, table in result.tables.items()},
                files=attempt.data_files(),
                facts=facts,
                about=told,
                made_with=made_with(),
            )
        except BaseException:
            attempt.discard()
            raise
        # From here on a marker may name the data: they go only if the marker is seen to be another's.
        artifact, mine = self._mark(place, manifest)
        if not mine:
            attempt.discard()
        return artifact

    def adopt(
        self,
        place: str,
        parts: Sequence[str],
        facts: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> StoredArtifact:
        """Mark a place finished by reference to finished artifacts, without copying them.

        Args:
            place: where.
            parts: places of the artifacts, in the order in which their tiles and tables follow each other.
            facts: its own; those of the parts are seen where it has none of that name.
            about: plain values for the manifest that are not content.

        Raises:
            ArtifactError: if a part is not finished.
            ConfigError: if two parts have a tile of the same name.
        """
        found = self.find(place)
        if found:
            return found
        opened = [self.read(part) for part in parts]
        _check_disjoint(opened)
        manifest = Manifest(
            attempt=Attempt(self._files, place).name,
            parts=tuple(Part(part.place, part.digest) for part in opened),
            union=content_hash(union(part.content() for part in opened)),
            facts=plain(facts or {}, "The fact"),
            about=plain(about or {}, "The value"),
            made_with=made_with(),
        )
        return self._mark(place, manifest)[0]

    def drop(self, place: str) -> None:
        """Remove an artifact and everything below its place: its marker, other markers, then data."""
        marker = f"{_checked(place)}/{NAME}"
        self._files.delete(marker)
        for path in self._files.below(place):
            if path.endswith(f"/{NAME}"):
                self._files.delete(path)
        self._files.delete_below(place)

    def places(self, prefix: str = "") -> list[str]:
        """Places of all finished artifacts below a prefix, itself not counted, sorted. One listing."""
        markers = [path for path in self._files.below(_folder(prefix)) if path.endswith(f"/{NAME}")]
        return sorted(place for path in markers if (place := path.removesuffix(f"/{NAME}")) != prefix.strip("/"))

    def verify(self, place: str) -> None:
        """Read every file of an artifact, and of those that it adopted, and compare with what was written.

        Raises:
            ArtifactError: naming the first file that differs.
        """
        self.read(place).verify()

    def put_record(self, name: str, value: Any) -> None:
        """Write a small JSON value under a name, over what was there: for progress and the like."""
        self._files.replace(_checked(name), json.dumps(value, indent=1).encode())

    def get_record(self, name: str) -> Any:
        """The value under a name; None where there is none.

        Raises:
            ArtifactError: if it is not JSON.
        """
        data = self._files.read(_checked(name))
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise ArtifactError(
                f"{name} in the store {self.uri} is damaged: delete it, then run `afterfit run` with its "
                "configuration again."
            ) from error

    def records(self, prefix: str = "") -> list[str]:
        """Names of the records below a prefix, sorted."""
        return [name for name in self._files.below(_folder(prefix)) if not f"/{name}".endswith(DATA_SUFFIXES)]

    def _mark(self, place: str, manifest: Manifest) -> tuple[StoredArtifact, bool]:
        """Create the marker once; returns the artifact at the place, and whether it is this manifest's."""
        for attempt in range(MARK_TRIES):
            mine = self._files.create(f"{place}/{NAME}", manifest.to_bytes())
            winner = manifest if mine else read_manifest(self._files, place)
            if winner:
                # A put repeated because its answer got lost finds its own marker: it has won.
                mine = winner.attempt == manifest.attempt
                return StoredArtifact(self._files, place, winner.digest, winner), mine
            time.sleep(0.05 * 2**attempt)  # the other's marker is on its way, or was just dropped
        raise StoreError(f"The store {self.uri} would neither take nor show the marker of {place}: try again later.")


def _checked(place: str) -> str:
    parts = place.split("/")
    if not GOOD_PLACE.fullmatch(place) or parts[-1] == NAME:
        raise ConfigError(f"{place!r} cannot name a place in a store: use names of letters and digits, joined by '/'.")
    return place


def _folder(prefix: str) -> str:
    """A prefix as a folder; "" and "/" are the whole store."""
    folder = prefix.strip("/")
    return _checked(folder) if folder else ""


def _check_disjoint(parts: Sequence[StoredArtifact]) -> None:
    owners: dict[tuple[str, str], str] = {}
    for part in parts:
        for name in ((family, tile) for family in part.families for tile in part.tiles(family)):
            if name in owners:
                shown = "/".join(name)
                raise ConfigError(f"{owners[name]} and {part.place} both have a tile {shown}: adopt one of them.")
            owners[name] = part.place
