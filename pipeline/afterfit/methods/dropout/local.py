"""A mode under which products of data and noisy weights are sampled, whatever module makes them.

Estimators, for B = A W and w of mean theta and variance v: `local` draws what comes out, N(A theta, A^2 v), for each
example and position by itself; `per_example` draws weights for every example; `per_batch` draws them once. Correlated
noise multiplies what goes in, and needs one product only; an example has one factor for all positions of a unit, as
weights that are drawn have.

Source: Kingma, Salimans, Welling (2015), arXiv:1506.02557.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from afterfit.methods.dropout.attention import PROJECTIONS, attended, attention_of
from afterfit.methods.dropout.weights import NoisyWeight, Site

Estimator = Literal["local", "per_example", "per_batch"]
FLOOR = 1e-12
"""Of a variance, so that its root has a gradient."""


class Fitted(NamedTuple):
    """A noisy weight at the present parameters."""

    noisy: NoisyWeight
    mean: Tensor
    free: Tensor


class Call(NamedTuple):
    """A product of data and a weight."""

    data: Tensor
    weight: Tensor
    bias: Tensor | None
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    site: Site
    unit_axis: int  # of the data


def call_of(func: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Call | None:
    """What an operation is, if it is such a product."""
    read = _READERS.get(func)
    return None if read is None else read(func, args, dict(kwargs))


def _linear(_: Callable, args: tuple, kwargs: dict[str, Any]) -> Call:
    given = _named(("input", "weight", "bias"), args, kwargs)
    return Call(given["input"], given["weight"], given.get("bias"), F.linear, Site(1), -1)


def _addmm(_: Callable, args: tuple, kwargs: dict[str, Any]) -> Call | None:
    given = _named(("bias", "input", "weight"), args, kwargs)
    if given.keys() - {"bias", "input", "weight"}:
        return None

    def product(data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return data @ weight if bias is None else torch.addmm(bias, data, weight)

    return Call(given["input"], given["weight"], given["bias"], product, Site(0), -1)


def _convolution(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Call:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = _named(names, args, kwargs)
    data, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)

    def product(data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return func(data, weight, bias, **given)

    return Call(data, weight, bias, product, Site(1, given.get("groups", 1)), 1 - weight.dim())


def _named(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | kwargs


_READERS: Mapping[Callable, Callable[[Callable, tuple, dict[str, Any]], Call | None]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
}


class NoisyProducts(TorchFunctionMode):
    """Samples the products with some weights.

    Args:
        weights: of every noisy tensor.
        estimator: of the noise.
        num_examples: B of the micro-batch, the first dimension of what the network is given.
    """

    def __init__(self, weights: list[Fitted], estimator: Estimator, num_examples: int):
        super().__init__()
        self._weights = {id(fitted.mean): fitted for fitted in weights}
        self._drawn: dict[tuple[int, int], Tensor] = {}
        self.estimator = estimator
        self.num_examples = num_examples

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        attention = attention_of(func, args, kwargs or {})
        if attention is not None and any(id(attention[name]) in self._weights for name in PROJECTIONS):
            return attended(attention, self._linear)
        call = call_of(func, args, kwargs or {})
        sampled = None if call is None else self._sampled(call)
        return func(*args, **(kwargs or {})) if sampled is None else sampled

    def _linear(self, data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sampled = self._sampled(Call(data, weight, bias, F.linear, Site(1), -1))
        return F.linear(data, weight, bias) if sampled is None else sampled

    def _sampled(self, call: Call) -> Tensor | None:
        """None where the weight has no noise."""
        fitted = self._weights.get(id(call.weight))
        if fitted is None:
            return None
        if fitted.noisy.choices.noise == "independent":
            return self._independent(call, fitted)
        factors = self._factors(call, fitted)
        return call.product((call.data * factors).to(call.data), call.weight, call.bias)

    def _once(self, fitted: Fitted, rows: int, draw: Callable[[], Tensor]) -> Tensor:
        """Draws of a weight's noise are the same at all its uses in a pass."""
        place = id(fitted.mean), rows
        if place not in self._drawn:
            self._drawn[place] = draw()
        return self._drawn[place]

    def _independent(self, call: Call, fitted: Fitted) -> Tensor:
        variance = fitted.noisy.variance(fitted.mean, fitted.free).to(call.weight)
        if self.estimator == "local":
            mean = call.product(call.data, call.weight, call.bias)
            spread = call.product(call.data.square(), variance, None).clamp_min(0)
            return mean + (spread + FLOOR).sqrt() * torch.randn_like(mean)
        deviation, rows = (variance + FLOOR).sqrt(), self._rows_of(call)
        sizes = (rows, *deviation.shape)
        noise = self._once(fitted, rows, lambda: torch.randn(sizes, dtype=deviation.dtype, device=deviation.device))
        parts = call.data.reshape(rows, -1, *call.data.shape[1:]).unbind()
        weights = call.weight + deviation * noise
        return torch.cat([call.product(data, one, call.bias) for data, one in zip(parts, weights, strict=True)])

    def _rows_of(self, call: Call) -> int:
        """Draws: one for each example, or one where the batch, or what all examples share, has one."""
        is_shared = call.unit_axis + call.data.dim() == 0 or call.data.shape[0] % self.num_examples
        return 1 if self.estimator == "per_batch" or is_shared else self.num_examples

    def _factors(self, call: Call, fitted: Fitted) -> Tensor:
        """Multipliers of the input units, of mean 1, the same wherever an example meets the unit."""
        alpha = fitted.noisy.log_alpha(fitted.mean, fitted.free).exp()  # in the type of the rates
        rows, units = self._rows_of(call), call.data.shape[call.unit_axis]
        is_dropped = fitted.noisy.choices.noise == "bernoulli"
        random = torch.rand if is_dropped else torch.randn
        noise = self._once(fitted, rows, lambda: random(rows, units, dtype=alpha.dtype, device=alpha.device))
        kept = 1 / (1 + alpha)
        factors = (noise < kept) / kept if is_dropped else 1 + (alpha + FLOOR).sqrt() * noise
        sizes = [1] * call.data.dim()
        sizes[0], sizes[call.unit_axis] = rows, units
        return factors.view(sizes).repeat_interleave(call.data.shape[0] // rows if rows > 1 else 1, dim=0)
