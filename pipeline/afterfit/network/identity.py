"""What a network is, cheaply: for content keys. Names, sizes and digests, never a machine's paths."""

from hashlib import file_digest
from pathlib import Path
from typing import Any

from afterfit.network.files import find_directory, find_file
from afterfit.network.settings import NetworkSettings

_WEIGHTS_AND_CONFIG = ("*.safetensors", "*.bin", "config.json")


def identity(settings: NetworkSettings) -> dict[str, Any]:
    """All that fixes the loaded numbers, as plain JSON values.

    `choose` is left out: it changes no weight, and the layout's fingerprint has it. Reads every weight file
    once, about 0.7 GB a second.

    Raises:
        ConfigError: for a missing file or directory, or a hub id that cannot be looked up.
    """
    record: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", exclude={"choose", "path", "weights", "revision"})
    }
    if settings.hub is not None:
        record["revision"] = _revision(settings.hub, settings.revision)
    if settings.path is not None:
        directory = find_directory(settings.path)
        paths = {path for pattern in _WEIGHTS_AND_CONFIG for path in directory.glob(pattern)}
        record["files"] = [_file(path) for path in sorted(paths)]
    if settings.weights is not None:
        record["files"] = [_file(find_file(settings.weights))]
    return record


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": file_digest(stream, "sha256").hexdigest(),
        }


def _revision(hub: str, revision: str | None) -> str:
    if revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return revision
    from afterfit.network.hugging_face import read_config

    return str(read_config(hub, revision)._commit_hash)
