"""From settings to a network that is ready to be analysed."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from afterfit.errors import ConfigError
from afterfit.network.files import find_file
from afterfit.network.functional import Network
from afterfit.network.noise import named_noise
from afterfit.network.settings import NetworkSettings
from afterfit.network.state import fill, read_safetensors
from afterfit.seeds import Seed


def load_module(settings: NetworkSettings) -> nn.Module:
    """The module on the CPU, in eval mode, no weight requiring a gradient.

    Random weights are named by `settings.seed`; torch's global generators are left as they were.

    Raises:
        ConfigError: for a missing file, a factory that does not import or take its arguments, a wrong field.
        NetworkError: for weights that do not load.
    """
    with named_noise(Seed(settings.seed, ("network",))):
        module = _build(settings)
    if settings.dtype is not None:
        module = module.to(getattr(torch, settings.dtype))
    if settings.weights is not None:
        file = find_file(settings.weights)
        fill(module, read_safetensors(file), file.name)
    return module.eval().requires_grad_(False)


def load_network(settings: NetworkSettings, state: Mapping[str, Tensor] | None = None) -> Network:
    """The network with its chosen weights in a layout.

    Args:
        settings: which network.
        state: weights and buffers to put in place of the loaded ones, by name.

    Raises:
        ConfigError: as `load_module`, or for a `choose` that chooses nothing.
        NetworkError: as `load_module`, or for a state of another network.
    """
    module = load_module(settings)
    if state is not None:
        fill(module, state, "The point estimate", whole=False)
    return Network(module, settings.choose, output=settings.output)


def put_state(module: nn.Module, state: Mapping[str, Tensor] | None) -> nn.Module:
    """A copy of a module with these weights and buffers in it; the module itself where there are none.

    Raises:
        NetworkError: for a state of another network.
    """
    if state is None:
        return module
    copy = deepcopy(module)
    fill(copy, state, "The point estimate", whole=False)
    return copy


def _build(settings: NetworkSettings) -> nn.Module:
    if settings.factory is not None:
        return _from_factory(settings.factory, settings.arguments)
    from afterfit.network import hugging_face  # transformers takes seconds to import

    return hugging_face.from_config(settings) if settings.is_random else hugging_face.pretrained(settings)


def _from_factory(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    factory = imported(name)
    try:
        inspect.signature(factory).bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: a builtin that has no signature
        raise ConfigError(f"The factory {name!r} does not take these `arguments`: {error}.") from error
    module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"The factory {name!r} returned {type(module).__name__}; it must return a torch.nn.Module.")
    return module


def imported(name: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Raises:
        ConfigError: if it cannot be imported, or is none.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"The function {name!r} cannot be imported ({error}); correct it or install it.") from error
    if not callable(function):
        raise ConfigError(f"{name!r} is not a function.")
    return function
