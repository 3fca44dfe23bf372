"""Where files of networks are looked up."""

import os
from collections.abc import Callable
from pathlib import Path

from afterfit.errors import ConfigError


def find_file(path: str) -> Path:
    """A weight file, as it is given, else below $AFTERFIT_MODELS, else below ../shared/models.

    Raises:
        ConfigError: if it is nowhere.
    """
    return _find(path, "file", Path.is_file)


def find_directory(path: str) -> Path:
    """The directory of a network, looked up as `find_file` does.

    Raises:
        ConfigError: if it is nowhere.
    """
    return _find(path, "directory", Path.is_dir)


def _find(path: str, kind: str, exists: Callable[[Path], bool]) -> Path:
    roots = [
        Path(),
        *(Path(root) for root in (os.environ.get("AFTERFIT_MODELS"), "../shared/models") if root),
    ]
    places = [root / Path(path).expanduser() for root in roots]
    for place in places:
        if exists(place):
            return place
    tried = ", ".join(dict.fromkeys(str(place) for place in places))
    raise ConfigError(f"There is no {kind} {path!r} (looked for {tried}); correct the path or set AFTERFIT_MODELS.")
