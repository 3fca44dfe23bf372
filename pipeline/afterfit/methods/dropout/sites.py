"""Which weights can have noise: those that data are multiplied by and nothing else, found by one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from afterfit.algebra import Examples
from afterfit.errors import ConfigError
from afterfit.methods.dropout.attention import PROJECTIONS, attention_of
from afterfit.methods.dropout.local import call_of
from afterfit.methods.dropout.weights import Site
from afterfit.network.functional import Network

SEEN: Final = 32
"""Examples of the pass, at most, where a micro-batch holds them."""
_ASIDE: Final = {Tensor.to, Tensor.type_as}
"""Take the type of a tensor that is not their first."""


class Sites(NamedTuple):
    """What was found."""

    noisy: Mapping[str, Site]  # block -> where it meets the data, in the layout's order
    still: Sequence[str]  # other blocks that are matrices, or more, and were chosen
    spread: Sequence[str]  # of the noisy ones, those that meet an example at several positions


class _Seen(TorchFunctionMode):
    """Notes the products of a pass with some tensors."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self.sites: dict[str, Site] = {}
        self.rows: dict[str, int] = {}
        self.elsewhere: set[str] = set()  # a head that is tied to an embedding would need its noise in both places

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        call, attention = call_of(func, args, kwargs or {}), attention_of(func, args, kwargs or {})
        met: list[tuple[Tensor, Site, int]] = []
        if call is not None:
            met.append((call.weight, call.site, made.numel() // call.weight.shape[1 - call.site.input_axis]))
        if attention is not None:
            rows = attention["query"].numel() // attention["query"].shape[-1]
            met += [(attention[name], Site(1), rows) for name in PROJECTIONS]
        for weight, site, rows in met:
            if id(weight) in self._names:
                self.sites[self._names[id(weight)]] = site
                self.rows[self._names[id(weight)]] = rows
        if any(isinstance(one, Tensor) for one in tree_leaves(made)):
            given = list(args[:1]) if func in _ASIDE else tree_leaves((args, kwargs))
            others = {id(one) for one in given} - {id(weight) for weight, _, _ in met}
            self.elsewhere |= {name for place, name in self._names.items() if place in others}
        return made


def first_inputs(examples: Examples, micro_batch: int) -> Mapping[str, Tensor]:
    """Of the pass that finds sites: some examples, since not all parts of a network meet each."""
    return examples.batch(list(range(min(SEEN, micro_batch, examples.num_examples)))).inputs


def sites_of(network: Network, inputs: Mapping[str, Tensor], globs: Sequence[str]) -> Sites:
    """Of the blocks that the globs choose.

    Raises:
        ConfigError: for a glob that chooses none which can have noise.
    """
    seen = _Seen(network.weights)
    with torch.no_grad(), seen:
        outputs_BC = network(inputs, network.weights)
    names = [block.name for block in network.layout.blocks if block.name in seen.sites.keys() - seen.elsewhere]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(
                f"The pattern {glob!r} in `method.weights` chooses no weight that data are multiplied by in a linear "
                f"layer or a convolution, and nowhere else; those are {', '.join(names[:3]) or 'none'}."
            )
    chosen = [name for name in network.weights if any(fnmatchcase(name, glob) for glob in globs)]
    matrices = [name for name in chosen if sum(size > 1 for size in network.weights[name].shape) > 1]
    noisy = {name: seen.sites[name] for name in names if name in chosen}
    return Sites(
        noisy=noisy,
        still=[name for name in matrices if name not in names],
        spread=[name for name in noisy if seen.rows[name] > len(outputs_BC)],
    )
