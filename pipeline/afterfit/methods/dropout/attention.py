"""torch's attention as products that noise can reach: it makes its projections inside one operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
PROJECTIONS: Final = ("in_proj_weight", "out_proj_weight")
_SIGNATURE = signature(F.multi_head_attention_forward)


def attention_of(func: Callable, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of torch's attention, by name; None for other operations, or projections of other widths."""
    if func is not F.multi_head_attention_forward:
        return None
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return None if bound.arguments["in_proj_weight"] is None else bound.arguments


def attended(given: Mapping[str, Any], linear: Linear) -> tuple[Tensor, Tensor | None]:
    """The same attention with both projections made by `linear`, examples first.

    In their place the operation gets identities: 4 E^2 more multiplications a token.
    """
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    names = ("query", "key", "value")
    made: dict[int, tuple[Tensor, ...]] = {}  # queries, keys and values are often one tensor
    for name in names:
        if id(given[name]) not in made:
            made[id(given[name])] = _examples_first(given[name], weight, bias, linear).chunk(3, dim=-1)
    same = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    changed = {name: made[id(given[name])][number] for number, name in enumerate(names)} | {
        "in_proj_weight": None,
        "in_proj_bias": None,
        "out_proj_weight": same,
        "out_proj_bias": None,
        "use_separate_proj_weight": True,
        "q_proj_weight": same,
        "k_proj_weight": same,
        "v_proj_weight": same,
    }
    outputs, weights = F.multi_head_attention_forward(**{**given, **changed})
    return _examples_first(outputs, given["out_proj_weight"], given["out_proj_bias"], linear), weights


def _examples_first(data: Tensor, weight: Tensor, bias: Tensor | None, linear: Linear) -> Tensor:
    """Of (T, B, E); without a batch (T, E) is one example."""
    return linear(data.transpose(0, 1), weight, bias).transpose(0, 1) if data.dim() == 3 else linear(data, weight, bias)
