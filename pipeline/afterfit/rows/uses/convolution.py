"""Convolutions: the outer products of linear layers, with patches as inputs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import unfold

from afterfit.rows.counts import Counts
from afterfit.rows.uses.use import Gradients, Use, products, put


@dataclass(frozen=True, eq=False)
class Convolution(Use):
    """y = conv(x, W): the outer products of `Outer`, with the patches of x as inputs."""

    inputs: Tensor  # (n B, in, height, width)
    num_examples: int  # B
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    num_outputs: int
    positions: int  # T

    def operand(self, dtype: torch.dtype) -> Tensor:
        """(B, groups, T, in of a group times the kernel): an example may stand n times, and T runs over all of it."""
        inputs = self.inputs.to(dtype)
        patches = unfold(inputs, self.kernel, dilation=self.dilation, padding=self.padding, stride=self.stride)
        copies = len(inputs) // self.num_examples
        patches = patches.view(self.num_examples, copies, self.groups, -1, patches.shape[-1])
        patches = patches.permute(0, 2, 1, 4, 3).contiguous()  # products of a transposed view are four times slower
        return patches.view(self.num_examples, self.groups, -1, patches.shape[-1])

    def write(self, g_S: Gradients, operand: Tensor, start: int, stop: int, into_SBp: Tensor, *, add: bool) -> None:
        """One batched product for each cotangent, over the positions; group by group where there are several."""
        num_examples, _, positions, num_inputs = operand.shape
        each = self.num_outputs // self.groups
        first, last = start // each, -(-stop // each)  # whole groups
        outer = slice(first * each, last * each)
        inner = slice(start - first * each, stop - first * each)
        patches_BgTi = operand[:, first:last]
        for g, into_Bp in zip(g_S, into_SBp, strict=True):
            g_BnoL = g.to(operand.dtype).reshape(num_examples, -1, self.num_outputs, math.prod(g.shape[2:]))
            g_BoT = g_BnoL.transpose(1, 2).reshape(num_examples, self.num_outputs, positions)
            if self.groups == 1:
                into_Boi = into_Bp.view(num_examples, stop - start, num_inputs)
                products(g_BoT[:, start:stop], patches_BgTi[:, 0], into_Boi, add=add)
                continue
            made_Bgoi = g_BoT[:, outer].unflatten(1, (last - first, each)) @ patches_BgTi
            put(made_Bgoi.flatten(1, 2)[:, inner].reshape(into_Bp.shape), into_Bp, add=add)

    @property
    def counts(self) -> Counts:
        """Positions are many, so rows are always made."""
        channels = self.inputs.shape[1] // self.groups
        size = self.num_outputs * channels * math.prod(self.kernel)
        return Counts(size, size * self.positions)
