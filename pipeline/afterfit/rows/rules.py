"""What a recording does when data meets weights: one rule for each kind of operation.

A rule does the operation and keeps the uses of the weights in it, or returns None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afterfit.rows.uses.convolution import Convolution
from afterfit.rows.uses.lookup import Lookup
from afterfit.rows.uses.outer import Outer
from afterfit.rows.uses.scale import Scale

if TYPE_CHECKING:
    from afterfit.rows.recording import Recording, Weight

_ALIASES = {"other": "weight", "mat2": "weight", "mat1": "input"}
"""Keywords of products."""

Given = Mapping[str, Any]
"""The operation's arguments by name."""


class Rule(NamedTuple):
    """One kind of operation."""

    arguments: str  # their names, in order
    apply: Callable[[Recording, Callable[[], Tensor], Given], Tensor | None]

    def __call__(self, recording: Recording, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """The operation's result, or None where the rule does not apply."""
        given = self.named(args, kwargs)
        return self.apply(recording, lambda: func(*args, **kwargs), given) if "input" in given else None

    def named(self, args: tuple, kwargs: dict[str, Any]) -> Given:
        """Arguments by name, however they were given."""
        named = {_ALIASES.get(name, name): value for name, value in kwargs.items()}
        return dict(zip(self.arguments.split(), args, strict=False)) | named


def _weight_and_bias(recording: Recording, given: Given, *forms: str) -> tuple[Weight | None, Weight | None] | None:
    """Tags of those that are chosen; None where one of them is not as the network holds it, or the data are mixed."""
    weight, bias = given.get("weight"), given.get("bias")
    if bias is not None and bias.dim() != 1 and "normalized_shape" not in given:
        return None
    of_weight, of_bias = recording.weight(weight, "itself", *forms), recording.weight(bias, "itself")
    known = (of_weight or recording.is_free(weight)) and (of_bias or recording.is_free(bias))
    return (of_weight, of_bias) if known and recording.is_whole(given["input"]) else None


def _linear(recording: Recording, run: Callable[[], Tensor], given: Given) -> Tensor | None:
    return _product(recording, run, given, transposed_if="transposed")


def _matmul(recording: Recording, run: Callable[[], Tensor], given: Given) -> Tensor | None:
    return _product(recording, run, given, transposed_if="itself")


def _product(recording: Recording, run: Callable[[], Tensor], given: Given, *, transposed_if: str) -> Tensor | None:
    """X W^T + b, or x W + b; `transposed_if` is the form in which the chosen weight is (in, out)."""
    tags = _weight_and_bias(recording, given, "transposed")
    data, weight = given["input"], given["weight"]
    plain = given.get("beta", 1) == 1 and given.get("alpha", 1) == 1
    if tags is None or data.dim() < 2 or weight.dim() != 2 or not plain:
        return None
    if tags[1] and given["bias"].numel() != weight.shape[0 if transposed_if == "transposed" else 1]:
        return None
    output = run()
    edge = recording.edge(output)
    num_outputs = output.shape[-1]
    of_weight, of_bias = tags
    if of_weight:
        inputs = data.detach().reshape(recording.num_examples, -1, data.shape[-1])
        recording.keep(Outer(of_weight.block, edge, inputs, num_outputs, of_weight.form == transposed_if))
    if of_bias:
        recording.keep(Scale(of_bias.block, edge, (num_outputs,)))
    return output


def _convolution(recording: Recording, run: Callable[[], Tensor], given: Given) -> Tensor | None:
    tags = _weight_and_bias(recording, given)
    data, weight = given["input"], given["weight"]
    if tags is None or data.dim() != weight.dim():
        return None
    kernel = tuple(weight.shape[2:])
    dilation = _each(given.get("dilation", 1), len(kernel))
    padding = _padding(given.get("padding", 0), kernel, dilation)
    if padding is None:
        return None
    output = run()
    edge = recording.edge(output)
    of_weight, of_bias = tags
    if of_weight:
        pictures = data.detach() if data.dim() == 4 else data.detach()[:, :, None]  # signals are one pixel high
        recording.keep(
            Convolution(
                of_weight.block,
                edge,
                pictures,
                recording.num_examples,
                kernel=_pair(kernel, 1),
                stride=_pair(_each(given.get("stride", 1), len(kernel)), 1),
                padding=_pair(padding, 0),
                dilation=_pair(dilation, 1),
                groups=given.get("groups", 1),
                num_outputs=len(weight),
                positions=output[0, 0].numel() * (len(data) // recording.num_examples),
            )
        )
    if of_bias:
        recording.keep(Scale(of_bias.block, edge, (len(weight),), along_channels=True))
    return output


def _each(value: Any, num: int) -> tuple[int, ...]:
    return (value,) * num if isinstance(value, int) else tuple(value) * (num // len(value))


def _pair(values: tuple[int, ...], first: int) -> tuple[int, int]:
    height, width = (first, *values)[-2:]
    return height, width


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...] | None:
    """Of either side; None where the sides differ."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        both = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return None if any(width % 2 for width in both) else tuple(width // 2 for width in both)
    return _each(padding, len(kernel))


def _lookup(recording: Recording, run: Callable[[], Tensor], given: Given) -> Tensor | None:
    of_weight = recording.weight(given["weight"], "itself")
    if of_weight is None or not _is_plain(given) or not recording.is_whole(given["input"]):
        return None
    output = run()
    padding = given.get("padding_idx")
    padding = None if padding is None else padding % len(given["weight"])
    index = given["input"].reshape(recording.num_examples, -1)
    num_tokens, width = given["weight"].shape
    recording.keep(Lookup(of_weight.block, recording.edge(output), index, num_tokens, width, padding))
    return output


def _is_plain(given: Given) -> bool:
    """Whether the gradient of an embedding is the sum over its tokens."""
    return given.get("max_norm") is None and not given.get("scale_grad_by_freq") and not given.get("sparse")


def is_plain_lookup(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether that is so of every row: with a padding row it is not."""
    given = _LOOKUP.named(args, kwargs)
    return _is_plain(given) and given.get("padding_idx") is None


def _normalisation(
    normalise: Callable[[Given], Callable[[Tensor], Tensor]], *, along_channels: bool
) -> Callable[[Recording, Callable[[], Tensor], Given], Tensor | None]:
    """x^ w + b, with what makes x^ from x."""

    def apply(recording: Recording, run: Callable[[], Tensor], given: Given) -> Tensor | None:
        tags = _weight_and_bias(recording, given)
        if tags is None or given.get("training"):
            return None
        output = run()
        edge = recording.edge(output)
        of_weight, of_bias = tags
        data, plain = given["input"].detach(), normalise(given)
        if of_weight:
            shape = tuple(given["weight"].shape)
            recording.keep(Scale(of_weight.block, edge, shape, along_channels, data, plain))
        if of_bias:
            recording.keep(Scale(of_bias.block, edge, tuple(given["bias"].shape), along_channels))
        return output

    return apply


def _layer(given: Given) -> Callable[[Tensor], Tensor]:
    shape, eps = given["normalized_shape"], given.get("eps", 1e-5)
    return lambda x: F.layer_norm(x, shape, eps=eps)


def _rms(given: Given) -> Callable[[Tensor], Tensor]:
    shape, eps = given["normalized_shape"], given.get("eps")
    return lambda x: F.rms_norm(x, shape, eps=eps)


def _group(given: Given) -> Callable[[Tensor], Tensor]:
    groups, eps = given["num_groups"], given.get("eps", 1e-5)
    return lambda x: F.group_norm(x, groups, eps=eps)


def _batch(given: Given) -> Callable[[Tensor], Tensor]:
    mean, variance, eps = given["running_mean"], given["running_var"], given.get("eps", 1e-5)
    return lambda x: F.batch_norm(x, mean, variance, eps=eps)


def elementwise(recording: Recording, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """Sums, products and the like of data and one weight that every example shares."""
    if len(args) != 2 or not all(isinstance(arg, Tensor) for arg in args):
        return None
    position = 0 if recording.is_free(args[1]) else 1
    tensor, data = args[position], args[1 - position]
    weight = recording.weight(tensor, "itself", "made", "looked up")
    if weight is None or not recording.is_whole(data) or not recording.is_free(data) or tensor.dim() > data.dim():
        return None
    if position == 0 and func.__name__ in _IN_PLACE:
        return None
    whole = tensor.reshape((1,) * (data.dim() - tensor.dim()) + tuple(tensor.shape))
    if weight.form == "looked up" and whole.shape[0] == data.shape[0]:  # the same tokens for every example
        copies = tensor.view_as(tensor)  # another use of the same has its own place in the graph
        recording.spread(weight, tensor, copies)
        return func(*(copies if arg is tensor else arg for arg in args), **kwargs)
    if whole.shape[0] != 1:
        return None
    copies = whole.expand(recording.num_examples, *whole.shape[1:])
    recording.spread(weight, tensor, copies)
    repeats = data.shape[0] // recording.num_examples
    given = list(args)
    given[position] = copies if repeats == 1 else copies.repeat_interleave(repeats, dim=0)
    return func(*given, **kwargs)


_LINEAR = Rule("input weight bias", _linear)
_MATMUL = Rule("input weight", _matmul)
_ADDMM = Rule("bias input weight", _matmul)
_CONVOLUTION = Rule("input weight bias stride padding dilation groups", _convolution)
_LOOKUP = Rule("input weight padding_idx max_norm norm_type scale_grad_by_freq sparse", _lookup)
_LAYER = Rule("input normalized_shape weight bias eps", _normalisation(_layer, along_channels=False))
_RMS = Rule("input normalized_shape weight eps", _normalisation(_rms, along_channels=False))
_GROUP = Rule("input num_groups weight bias eps", _normalisation(_group, along_channels=True))
_BATCH_ARGUMENTS = "input running_mean running_var weight bias training momentum eps"

_RULES: Mapping[Callable, Rule] = {
    F.linear: _LINEAR,
    torch.matmul: _MATMUL,
    torch.mm: _MATMUL,
    Tensor.matmul: _MATMUL,
    Tensor.mm: _MATMUL,
    Tensor.__matmul__: _MATMUL,
    torch.addmm: _ADDMM,
    Tensor.addmm: _ADDMM,
    torch.conv1d: _CONVOLUTION,
    torch.conv2d: _CONVOLUTION,
    F.embedding: _LOOKUP,
    F.layer_norm: _LAYER,
    torch.layer_norm: _LAYER,
    F.rms_norm: _RMS,
    torch.rms_norm: _RMS,
    F.group_norm: _GROUP,
    torch.group_norm: _GROUP,
    F.batch_norm: Rule(_BATCH_ARGUMENTS, _normalisation(_batch, along_channels=True)),
}
_IN_PLACE = {"add_", "sub_", "mul_", "div_", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
_ELEMENTWISE = {"add", "sub", "mul", "div", "true_divide", "rsub", "multiply", "subtract"} | _IN_PLACE
_ELEMENTWISE |= {f"__{letter}{name}__" for letter in ("", "r") for name in ("add", "sub", "mul", "truediv")}


def rule_for(func: Callable) -> Callable[[Recording, Callable, tuple, dict[str, Any]], Tensor | None] | None:
    """The rule of an operation."""
    rule = _RULES.get(func)
    return elementwise if rule is None and getattr(func, "__name__", "") in _ELEMENTWISE else rule


def multiplications(func: Callable, args: tuple, kwargs: dict[str, Any], result: Any) -> int:
    """Of a product, a convolution or attention; other operations take none to speak of."""
    if func is F.scaled_dot_product_attention:
        keys = args[1] if len(args) > 1 else kwargs["key"]
        return 2 * result.numel() * keys.shape[-2]
    rule = _RULES.get(func)
    if rule is None or rule not in (_LINEAR, _MATMUL, _ADDMM, _CONVOLUTION):
        return 0
    given = rule.named(args, kwargs)
    return result.numel() * (given["weight"][0].numel() if rule is _CONVOLUTION else given["input"].shape[-1])
