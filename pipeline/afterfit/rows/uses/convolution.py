"""Convolutions: the outer products of linear layers, with patches as inputs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

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

    def operand(self, dtype: torch.dtype, num_cotangents: int) -> Tensor:
        """Patches (B, groups, T, in of a group times the kernel): an example may stand n times, T runs over all of it.

        Channels last of all copies runs of channels, ten times as fast as the order of the weight; rows are then put
        into that order, which costs as much for every cotangent. It is taken where positions are many.
        """
        windows_BnhwijGc = self._windows(dtype)
        order = (0, 6, 1, 2, 3, 4, 5, 7) if self._is_last(num_cotangents) else (0, 6, 1, 2, 3, 7, 4, 5)
        channels = self.inputs.shape[1] // self.groups
        shape = (self.num_examples, self.groups, -1, channels * math.prod(self.kernel))
        return windows_BnhwijGc.permute(order).reshape(shape)

    def write(self, g_S: Gradients, operand: Tensor, start: int, stop: int, into_SBp: Tensor, *, add: bool) -> None:
        """One batched product for each cotangent, over the positions; group by group where there are several."""
        num_examples, _, positions, num_inputs = operand.shape
        each = self.num_outputs // self.groups
        first, last = start // each, -(-stop // each)  # whole groups
        outer = slice(first * each, last * each)
        inner = slice(start - first * each, stop - first * each)
        patches_BgTi = operand[:, first:last]
        is_last = self._is_last(len(g_S))
        for g, into_Bp in zip(g_S, into_SBp, strict=True):
            g_BnoL = g.to(operand.dtype).reshape(num_examples, -1, self.num_outputs, math.prod(g.shape[2:]))
            g_BoT = g_BnoL.transpose(1, 2).reshape(num_examples, self.num_outputs, positions)
            if self.groups == 1 and not is_last:
                into_Boi = into_Bp.view(num_examples, stop - start, num_inputs)
                products(g_BoT[:, start:stop], patches_BgTi[:, 0], into_Boi, add=add)
                continue
            made_Bgoi = g_BoT[:, outer].unflatten(1, (last - first, each)) @ patches_BgTi
            made_Boi = made_Bgoi.flatten(1, 2)[:, inner]
            if is_last:
                made_Boi = made_Boi.unflatten(2, (math.prod(self.kernel), -1)).transpose(2, 3)
            put(made_Boi, into_Bp.view(made_Boi.shape), add=add)

    def _windows(self, dtype: torch.dtype) -> Tensor:
        """A view (B, n, height, width, kernel, kernel, groups, in of a group) of the padded inputs."""
        (high, wide), (down, across) = self.padding, self.dilation
        padded_XHWc = pad(self.inputs.to(dtype).permute(0, 2, 3, 1), (0, 0, wide, wide, high, high)).contiguous()
        sizes = [
            (size - step * (kernel - 1) - 1) // stride + 1
            for size, step, kernel, stride in zip(
                padded_XHWc.shape[1:3], self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        each, row, column, channel = padded_XHWc.stride()
        windows = padded_XHWc.as_strided(
            (len(padded_XHWc), *sizes, *self.kernel, padded_XHWc.shape[3]),
            (each, row * self.stride[0], column * self.stride[1], row * down, column * across, channel),
        )
        return windows.unflatten(5, (self.groups, -1)).unflatten(0, (self.num_examples, -1))

    def _is_last(self, num_cotangents: int) -> bool:
        """Whether channels come last in patches and in rows as they are made."""
        return num_cotangents * self.num_outputs // self.groups < 2 * self.positions

    @property
    def counts(self) -> Counts:
        """Positions are many, so rows are always made."""
        channels = self.inputs.shape[1] // self.groups
        size = self.num_outputs * channels * math.prod(self.kernel)
        return Counts(size, size * self.positions)
