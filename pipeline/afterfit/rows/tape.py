"""The fast backend: one forward pass that is watched, one backward pass for each cotangent to the layers' outputs only.

Rows are then matrix products of what each layer was given and the gradients at what it gave, made piece by piece and
contracted at once. Forward mode is not needed, so fused attention, reduced precision, checkpointing and layers on
several devices stay as they are. Per GGN column, the cost does not depend on the number of positions T:
2 P S per example and product, against 4 P T for a product by forward and reverse mode.
"""

import weakref
from collections.abc import Hashable, Mapping
from copy import copy

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.network.functional import Network
from afterfit.rows.contractions import contractions
from afterfit.rows.coverage import Coverage, coverage_of, wrong_blocks
from afterfit.rows.forward_mode import forward_mode_agrees, has_forward_mode
from afterfit.rows.mixed import Passes
from afterfit.rows.protocol import Cotangents
from afterfit.rows.recording import Recording
from afterfit.rows.tape_rows import TapeRows


class TapeBackend:
    """Rows of one network. What has no rule is computed by reverse mode over the weights, and is told."""

    def __init__(self, network: Network, memory_gb: float = 2.0, arithmetic: Arithmetic = PLAIN):
        self.network = network
        self.arithmetic = arithmetic
        self.passes = Passes(network, arithmetic)
        self.contractions = contractions(compiled=arithmetic.compiled)
        self.memory_gb = memory_gb
        self._forward_mode = None if has_forward_mode(self.passes) else False  # None: not tried yet
        here = {name: weight for name, weight in network.weights.items() if name not in network.away}
        self._leaves = {name: weight.detach().requires_grad_() for name, weight in here.items()}
        self.wrong: dict[Hashable, dict[str, str]] = {}  # for each kind of micro-batch, what the tape must not make
        self._free: list[Tensor] = []

    def rows(self, batch: Batch, cotangents: Cotangents) -> "TapeRows":
        """One forward pass; the rest when a verb asks for it.

        The first micro-batch of each kind is checked by plain reverse mode: a rule could take for examples what is not.
        """
        recording, outputs_BC = self._record(batch)
        recording.without_rule |= self._checked(batch, recording, outputs_BC)  # first: it needs as much memory again
        return TapeRows(self, batch, recording, outputs_BC, cotangents(outputs_BC.detach()))

    def at(self, weights: Mapping[str, Tensor]) -> "TapeBackend":
        """The same network with other weights, block name -> tensor. What was found out about its kinds stays."""
        moved = copy(self)
        moved.network = self.network.at(weights)
        moved.passes = Passes(moved.network, self.arithmetic)
        moved._leaves = {name: moved.network.weights[name].detach().requires_grad_() for name in self._leaves}
        return moved

    def _checked(self, batch: Batch, recording: Recording, outputs_BC: Tensor) -> dict[str, str]:
        """Blocks whose rows are wrong for micro-batches of this kind: as many examples, sizes that they divide."""
        num_examples, num_outputs = outputs_BC.shape
        divided = tuple(tuple(size % num_examples == 0 for size in value.shape) for value in batch.inputs.values())
        kind = (num_examples, divided)
        if kind not in self.wrong:
            mixed_B1C = _mixed(outputs_BC).expand(num_examples, 1, num_outputs)
            checked = TapeRows(self, batch, recording, outputs_BC, mixed_B1C)
            *_, right = self._first_alone(batch)
            self.wrong[kind] = wrong_blocks(self.passes, checked, right)
        return self.wrong[kind]

    def has_forward_mode(self, batch: Batch) -> bool:
        """Whether forward mode gives what reverse mode gives; tried once, when it would first be taken."""
        if self._forward_mode is None:
            first, mixed_1C, right = self._first_alone(batch)
            self._forward_mode = forward_mode_agrees(self.network, first.inputs, mixed_1C[None], right)
        return self._forward_mode

    def _first_alone(self, batch: Batch) -> tuple[Batch, Tensor, dict[str, Tensor]]:
        """The first example, a cotangent (1, C), and its gradients by plain reverse mode."""
        first = Batch({name: value[:1] for name, value in batch.inputs.items()}, None, batch.indexes[:1])
        recording, outputs_1C = self._record(first)
        mixed_1C = _mixed(outputs_1C)[None]
        return first, mixed_1C, recording.to_weights(outputs_1C, mixed_1C)

    def coverage(self, batch: Batch) -> Coverage:
        """Which weights have rules in a forward pass over these examples."""
        recording, _ = self._record(batch)
        has_it = has_forward_mode(self.passes)
        return coverage_of(self.network, recording, len(batch), has_forward_mode=has_it)

    def _record(self, batch: Batch) -> tuple[Recording, Tensor]:
        network = self.network
        recording = Recording(self._leaves, len(batch), network.module, network.away)
        with torch.enable_grad(), recording.watching(), recording:
            recording.mark(batch.inputs)
            outputs_BC = self.passes.forward(batch.inputs, self._leaves)
        return recording, outputs_BC

    def borrow(self, owner: object, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for as long as `owner` lives: fresh pages cost as much as the products that fill them."""
        fitting = [
            number
            for number, buffer in enumerate(self._free)
            if buffer.numel() >= numel and buffer.dtype == dtype and buffer.device == device
        ]
        if fitting:
            buffer = self._free.pop(fitting[0])
        else:
            self._free.clear()
            buffer = torch.empty(numel, dtype=dtype, device=device)
        weakref.finalize(owner, self._free.append, buffer)
        return buffer[:numel]


def _mixed(outputs_BC: Tensor) -> Tensor:
    """A cotangent (C,) in which every output has a part."""
    mixed_C = torch.linspace(1, 2, outputs_BC.shape[1]).to(outputs_BC)
    mixed_C[1::2].neg_()
    return mixed_C
