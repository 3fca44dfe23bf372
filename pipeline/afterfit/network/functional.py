"""Any `nn.Module` as a pure function of the chosen weights: the one adapter between the program and user models."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from afterfit.errors import NetworkError
from afterfit.layout import Layout
from afterfit.network.tokens import token_shape
from afterfit.precision import norm

OutputRule = Literal["auto", "last_token", "tokens"]
"""How outputs become (B, C): `auto` takes logits, or a tensor; `last_token` takes the last attended position; `tokens`
takes all positions, (B, T V), as `TokenCategorical` needs them."""


class Network:
    """A trained module, its chosen weights in a layout, and its outputs as (B, C).

    The module is never edited: weights are overridden by `torch.func.functional_call`.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: str | Sequence[str] = "*",
        *,
        output: OutputRule = "auto",
        tile_weights: int | None = None,
    ):
        check_usable(module)
        self.module = module
        self.output: OutputRule = output
        self.layout = Layout.of(module, weights, tile_weights)
        state = dict(module.named_parameters())
        self._moved: Mapping[str, Tensor] = {}  # in place of the module's own
        self.weights: dict[str, Tensor] = {block.name: state[block.name].detach() for block in self.layout.blocks}

    @property
    def dtype(self) -> torch.dtype:
        """Of the chosen weights."""
        return next(iter(self.weights.values())).dtype

    @property
    def squared_norm(self) -> float:
        """|theta|^2 of the chosen weights, summed in float64."""
        return sum(float(norm(weight.flatten()) ** 2) for weight in self.weights.values())

    @property
    def away(self) -> frozenset[str]:
        """Chosen blocks that accelerate keeps on a disk or elsewhere, and brings for the time their layer runs."""
        return frozenset(name for name, weight in self.weights.items() if weight.is_meta)

    @property
    def device(self) -> torch.device:
        """Of the inputs: that of the first chosen weight, or where accelerate brings one that it has put away."""
        first = next((weight for weight in self.weights.values() if not weight.is_meta), None)
        if first is not None:
            return first.device
        hooks = (getattr(part, "_hf_hook", None) for part in self.module.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        found = next((place for place in places if place is not None), None)
        if found is None:
            raise NetworkError("The network's weights are on the meta device; load them before it is used.")
        return torch.device(found)

    def at(self, weights: Mapping[str, Tensor]) -> "Network":
        """The same network with other chosen weights, block name -> tensor; calls take these by default.

        Raises:
            NetworkError: for weights that are not in memory.
        """
        if self.away:
            raise NetworkError(
                f"The network at other weights needs all chosen ones in memory, and {min(self.away)!r} is put away; "
                "load the network without offloading."
            )
        moved = copy(self)
        moved.weights = {name: weights[name].to(own) for name, own in self.weights.items()}
        moved._moved = moved.weights
        return moved

    def __call__(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs (B, C), with some of the weights replaced.

        Args:
            inputs: keyed by forward's argument names.
            weights: block name -> tensor shaped like the block; what is not named keeps its trained value.
        """
        placed = {name: self._place(value) for name, value in inputs.items()}
        raw = torch.func.functional_call(self.module, {**self._moved, **(weights or {})}, (), placed)
        return self._outputs(raw, placed)

    def _place(self, value: Tensor) -> Tensor:
        floating = value.is_floating_point()
        return value.to(self.device, self.dtype if floating else value.dtype)

    def _outputs(self, raw: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        logits = raw if isinstance(raw, Tensor) else getattr(raw, "logits", None)
        if logits is None:
            raise NetworkError(
                f"The network returned {type(raw).__name__} without `logits`; return a tensor or an object with logits."
            )
        if self.output == "last_token":
            if logits.dim() != 3:
                raise NetworkError(
                    f"The network's output has shape {tuple(logits.shape)}; `output: last_token` needs "
                    "(examples, tokens, vocabulary)."
                )
            mask = inputs.get("attention_mask")
            if mask is None:
                return logits[:, -1]
            positions = torch.arange(mask.shape[1], device=mask.device)
            last = (mask * positions).argmax(dim=1)
            return torch.take_along_dim(logits, last[:, None, None], dim=1)[:, 0]
        if self.output == "tokens":
            if logits.dim() != 3 or tuple(logits.shape[:2]) != token_shape(inputs):
                raise NetworkError(
                    f"The network's output has shape {tuple(logits.shape)} for {token_shape(inputs)} tokens; the "
                    "tokens likelihood needs logits (examples, tokens, vocabulary) for every token of the inputs."
                )
            return logits.flatten(1)
        if logits.dim() == 1:
            return logits[:, None]
        if logits.dim() > 2:
            raise NetworkError(
                f"The network's output has shape {tuple(logits.shape)}; (examples, outputs) is needed. "
                "For a language model set `output: last_token`."
            )
        return logits


def check_usable(module: nn.Module) -> None:
    """Refuse what would make a posterior meaningless.

    Raises:
        NetworkError: for no weights, numbers that are not finite, train mode, or outputs that depend on the batch.
    """
    named = dict(module.named_parameters())
    if not named:
        raise NetworkError("The network has no weights.")
    for name, value in (*named.items(), *module.named_buffers()):
        if not value.is_meta and not bool(torch.isfinite(value).all()):
            raise NetworkError(f"{name!r} of the network is not finite; train again or load another checkpoint.")
    for name, part in module.named_modules():
        called = name or type(part).__name__
        if part.training:  # dropout is not always a module, so no part is taken to be harmless
            raise NetworkError(f"The network is in train mode ({called!r} is); call `network.eval()` first.")
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise NetworkError(
                f"{called!r} has no running statistics, so outputs depend on the batch; train it with "
                "`track_running_stats=True`."
            )
