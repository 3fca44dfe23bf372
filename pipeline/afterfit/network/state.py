"""Putting tensors into a module by name, and safetensors files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from afterfit.errors import NetworkError

_COUNTERS = ("num_batches_tracked",)  # steps seen by batch norm: no output depends on them in eval mode


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU.

    Raises:
        NetworkError: if the file is damaged or is no safetensors file.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise NetworkError(f"{path.name} is not a whole safetensors file ({error}); fetch it again.") from error


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str, *, whole: bool = True) -> None:
    """Copy tensors into the weights and buffers of a module, converted to the module's types.

    Of tied weights one name is enough.

    Args:
        module: changed in place.
        state: dotted name -> tensor of the same shape.
        source: where the tensors come from, for errors.
        whole: whether every weight and every saved buffer must be named.

    Raises:
        NetworkError: naming the first few unknown or missing names, or the first of another shape.
    """
    places = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    unexpected = [name for name in state if name not in places]
    if unexpected:
        raise NetworkError(f"{source} has {some(unexpected)}, which the network has not; it is for another network.")
    filled = {id(places[name]) for name in state}
    missing = [
        name
        for name in module.state_dict()
        if name in places and id(places[name]) not in filled and not name.endswith(_COUNTERS)
    ]
    if whole and missing:
        raise NetworkError(f"{source} lacks {some(missing)}; it is for another network.")
    with torch.no_grad():
        for name, value in state.items():
            if value.shape != places[name].shape:
                raise NetworkError(
                    f"{source} has {name!r} of shape {tuple(value.shape)}, the network of shape "
                    f"{tuple(places[name].shape)}; it is for another network."
                )
            places[name].copy_(value)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    first = ", ".join(map(repr, names[:3]))
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
