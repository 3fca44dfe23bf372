"""Which weights can have noise: those that data are multiplied by, found by one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from afterfit.errors import ConfigError
from afterfit.methods.dropout.attention import PROJECTIONS, attention_of
from afterfit.methods.dropout.local import call_of
from afterfit.methods.dropout.weights import Site
from afterfit.network.functional import Network


class _Seen(TorchFunctionMode):
    """Notes the products of a pass with some tensors."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self.sites: dict[str, Site] = {}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call, attention = call_of(func, args, kwargs or {}), attention_of(func, args, kwargs or {})
        met = [] if call is None else [(call.weight, call.site)]
        met += [] if attention is None else [(attention[name], Site(1)) for name in PROJECTIONS]
        self.sites |= {self._names[id(weight)]: site for weight, site in met if id(weight) in self._names}
        return func(*args, **(kwargs or {}))


def sites_of(network: Network, inputs: Mapping[str, Tensor], globs: Sequence[str]) -> dict[str, Site]:
    """Block -> where it meets the data, of the blocks that the globs choose, in the layout's order.

    Raises:
        ConfigError: for a glob that chooses none.
    """
    seen = _Seen(network.weights)
    with torch.no_grad(), seen:
        network(inputs, network.weights)
    names = [block.name for block in network.layout.blocks if block.name in seen.sites]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(
                f"The pattern {glob!r} in `method.weights` chooses no weight that data are multiplied by in a linear "
                f"layer or a convolution; those are {', '.join(names[:3]) or 'none'}."
            )
    return {name: seen.sites[name] for name in names if any(fnmatchcase(name, glob) for glob in globs)}
