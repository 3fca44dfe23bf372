"""Networks of `transformers`: from the hub, from a directory, or from a configuration with random weights."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from afterfit.errors import ConfigError, NetworkError
from afterfit.network.files import find_directory
from afterfit.network.settings import AUTO_CLASSES, NetworkSettings
from afterfit.network.state import some

_NOT_FIELDS = ("attn_implementation",)  # taken by the loaders, not kept under that name by configurations


def read_config(name: str, revision: str | None = None) -> Any:
    """The configuration of a hub id or a directory.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        return transformers.AutoConfig.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"The network {name!r} cannot be read: {reason}") from error


def pretrained(settings: NetworkSettings) -> nn.Module:
    """A network with the weights of `hub` or `path`; a directory is read without any network connection.

    Raises:
        ConfigError: for a missing directory, an unknown id, or an unknown field in `config`.
        NetworkError: if the checkpoint lacks weights that `fresh` does not name.
    """
    name = settings.hub or str(find_directory(settings.path or ""))
    known = read_config(name, settings.revision)
    _check_fields(settings.config, known)
    origin = settings.hub or settings.path
    options = {} if settings.hub is None else {"revision": settings.revision or "main"}
    with _quietly():
        try:
            module, found = _auto_class(settings).from_pretrained(
                name,
                **options,
                local_files_only=settings.hub is None,
                dtype="auto" if settings.dtype is None else getattr(torch, settings.dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
                **settings.config,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise NetworkError(f"The weights of {origin!r} do not load: {reason}") from error
    patterns = [settings.fresh] if isinstance(settings.fresh, str) else settings.fresh or []
    changed = [entry[0] if isinstance(entry, tuple) else entry for entry in found["mismatched_keys"]]
    lacking = [
        weight
        for weight in dict.fromkeys((*found["missing_keys"], *changed))
        if not any(fnmatchcase(weight, pattern) for pattern in patterns)
    ]
    if lacking:
        raise NetworkError(
            f"The checkpoint {origin!r} has no fitting weights for {some(lacking)}; choose another `auto`, "
            "or name them in `fresh` to draw them at random and train them."
        )
    return module


def from_config(settings: NetworkSettings) -> nn.Module:
    """A network with random weights, drawn from torch's global generator.

    Raises:
        ConfigError: for an unknown model type or field.
    """
    fields = dict(settings.config)
    kind = fields.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise ConfigError(f"transformers knows no model type {kind!r}.{_nearest(kind, CONFIG_MAPPING.keys())}")
    _check_fields(fields, CONFIG_MAPPING[kind]())
    try:
        return _auto_class(settings).from_config(CONFIG_MAPPING[kind](**fields))
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"No {settings.auto} network of type {kind!r} can be built: {reason}") from error


def _auto_class(settings: NetworkSettings) -> Any:
    return getattr(transformers, AUTO_CLASSES[settings.auto])


def _check_fields(fields: Mapping[str, Any], known: Any) -> None:
    """A misspelt field would be kept as an attribute that nothing reads."""
    for name in fields:
        if name not in _NOT_FIELDS and not hasattr(known, name):
            raise ConfigError(
                f"The configuration of {known.model_type} has no field {name!r}.{_nearest(name, vars(known))}"
            )


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the table and the bar that transformers prints: what matters in it is an error here."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
