"""From a path, folder, glob or URI to the files of a data set, and where they were looked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from afterfit.errors import ConfigError, DataError

ENDINGS = (".parquet", ".arrow", ".feather", ".csv", ".json", ".jsonl", ".ndjson")
SIDE_FILES = (
    "dataset_info.json",
    "state.json",
    "dataset_dict.json",
)  # of a Hugging Face `save_to_disk` folder
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}  # scheme -> our extra that brings its file system


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a data set."""

    name: str  # relative to the root of the data set; enters its identity
    address: str  # absolute path or URI, to open it; never enters an identity


def is_remote(path: str) -> bool:
    """Whether it is a URI of something other than the local disk."""
    return "://" in path and not path.startswith("file://")


def candidates(path: str) -> list[Path]:
    """Where a local path is looked for, in order."""
    local = Path(path.removeprefix("file://")).expanduser()
    if local.is_absolute():
        return [local]
    roots = [Path(), *(Path(root) for root in (os.environ.get("AFTERFIT_DATA"), "../shared/data") if root)]
    return [(root / local).absolute() for root in roots]


def find_files(path: str) -> list[Found]:
    """The files that `path` names, in the order of their names; a single file is named by its last part.

    Raises:
        DataError: if there is none; says where it was looked for.
        ConfigError: for an ending that is not known, a folder of several kinds, or a scheme that is not
            installed.
    """
    files = search(path)
    if not files:
        places = [path] if is_remote(path) else [str(place) for place in candidates(path)]
        raise DataError(f"Found no data at {path!r}; looked for {', '.join(places)}. Correct `path` or $AFTERFIT_DATA.")
    endings = sorted({PurePosixPath(file.name).suffix.lower() for file in files})
    if len(endings) > 1:
        kinds = ", ".join(endings)
        raise ConfigError(f"{path!r} names files of several kinds ({kinds}); give a glob such as '*{endings[-1]}'.")
    return files


def search(path: str) -> list[Found]:
    """As `find_files`, but empty where nothing is there."""
    if is_remote(path):
        return _search_remote(path)
    for place in candidates(path):
        if place.is_file():
            _check_ending(place.name)
            return [Found(place.name, str(place))]
        if place.is_dir():
            return _named(str(place), [str(file) for file in place.rglob("*") if file.is_file()])
        if has_magic(str(place)) and (
            files := [file for file in glob(str(place), recursive=True) if os.path.isfile(file)]
        ):
            return _named(_fixed_part(str(place)), files)
    return []


def file_system(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path within it.

    Raises:
        ConfigError: if the scheme is unknown or its package is not installed.
    """
    import fsspec

    scheme = uri.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(uri)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"run `pip install afterfit[{extra}]`" if extra else f"install its package ({error})"
        raise ConfigError(f"Reading {scheme}:// needs a package that is not installed; {remedy}.") from error
    except ValueError as error:
        raise ConfigError(f"{uri!r} has an unknown scheme; use a path, s3:// or gs://.") from error


def _search_remote(uri: str) -> list[Found]:
    system, path = file_system(uri)
    scheme = uri.partition("://")[0]
    try:
        if has_magic(path):
            root, paths = _fixed_part(path), system.glob(path)
        elif system.isfile(path):
            root, paths = str(PurePosixPath(path).parent), [path]
        else:
            root, paths = path, system.find(path)
    except OSError as error:
        raise DataError(f"{uri!r} cannot be read: {error}. Check the address and your credentials.") from error
    named = _named(root, [str(file) for file in paths])
    return [Found(file.name, f"{scheme}://{file.address}") for file in named]


def _fixed_part(pattern: str) -> str:
    """The folder above the first part with a wildcard."""
    parts = PurePosixPath(pattern).parts
    first = next(number for number, part in enumerate(parts) if has_magic(part))
    return str(PurePosixPath(*parts[:first]))


def _named(root: str, paths: Sequence[str]) -> list[Found]:
    files = [Found(os.path.relpath(path, root).replace(os.sep, "/"), path) for path in paths]
    seen = [file for file in files if _is_data(PurePosixPath(file.name))]
    return sorted(seen, key=lambda file: file.name)


def _is_data(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.parts)
    return not hidden and name.name not in SIDE_FILES and name.suffix.lower() in ENDINGS


def _check_ending(name: str) -> None:
    if PurePosixPath(name).suffix.lower() not in ENDINGS:
        raise ConfigError(f"The kind of {name!r} is not known by its ending; it must be one of {', '.join(ENDINGS)}.")
