"""Which weights can have noise: those that data are multiplied by and nothing else, found by one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from afterfit.errors import ConfigError
from afterfit.methods.dropout.attention import PROJECTIONS, attention_of
from afterfit.methods.dropout.local import call_of
from afterfit.methods.dropout.weights import Site
from afterfit.network.functional import Network


class Sites(NamedTuple):
    """What was found."""

    noisy: Mapping[str, Site]  # block -> where it meets the data, in the layout's order
    still: Sequence[str]  # other blocks that are matrices, or more, and were chosen


class _Seen(TorchFunctionMode):
    """Notes the products of a pass with some tensors."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self.sites: dict[str, Site] = {}
        self.tables: set[str] = set()  # a head that is tied to an embedding would need its noise in both places

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call, attention = call_of(func, args, kwargs or {}), attention_of(func, args, kwargs or {})
        met = [] if call is None else [(call.weight, call.site)]
        met += [] if attention is None else [(attention[name], Site(1)) for name in PROJECTIONS]
        self.sites |= {self._names[id(weight)]: site for weight, site in met if id(weight) in self._names}
        if func is F.embedding:
            self.tables |= {
                self._names[id(given)] for given in (*args, *(kwargs or {}).values()) if id(given) in self._names
            }
        return func(*args, **(kwargs or {}))


def sites_of(network: Network, inputs: Mapping[str, Tensor], globs: Sequence[str]) -> Sites:
    """Of the blocks that the globs choose.

    Raises:
        ConfigError: for a glob that chooses none which can have noise.
    """
    seen = _Seen(network.weights)
    with torch.no_grad(), seen:
        network(inputs, network.weights)
    names = [block.name for block in network.layout.blocks if block.name in seen.sites.keys() - seen.tables]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(
                f"The pattern {glob!r} in `method.weights` chooses no weight that data are multiplied by in a linear "
                f"layer or a convolution, and nowhere else; those are {', '.join(names[:3]) or 'none'}."
            )
    chosen = [name for name in network.weights if any(fnmatchcase(name, glob) for glob in globs)]
    matrices = [name for name in chosen if sum(size > 1 for size in network.weights[name].shape) > 1]
    return Sites(
        noisy={name: seen.sites[name] for name in names if name in chosen},
        still=[name for name in matrices if name not in names],
    )
