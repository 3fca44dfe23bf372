"""The fast backend: one forward pass that is watched, one backward pass for each cotangent to the layers' outputs only.

Rows are then matrix products of what each layer was given and the gradients at what it gave, made piece by piece and
contracted at once. Forward mode is not needed, so fused attention, reduced precision, checkpointing and layers on
several devices stay as they are. Per GGN column, the cost does not depend on the number of positions T:
2 P S per example and product, against 4 P T for a product by forward and reverse mode.
"""

import weakref

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.network.functional import Network
from afterfit.rows.coverage import Coverage, coverage_of, wrong_blocks
from afterfit.rows.forward_mode import has_forward_mode
from afterfit.rows.protocol import Cotangents
from afterfit.rows.recording import Recording
from afterfit.rows.tape_rows import TapeRows


class TapeBackend:
    """Rows of one network. What has no rule is computed by reverse mode over the weights, and is told."""

    def __init__(self, network: Network, memory_gb: float = 2.0):
        self.network = network
        self.memory_gb = memory_gb
        self.forward_mode = has_forward_mode(network)
        here = {name: weight for name, weight in network.weights.items() if name not in network.away}
        self._leaves = {name: weight.detach().requires_grad_() for name, weight in here.items()}
        self._wrong: dict[str, str] | None = None  # blocks that must not be taken from the tape; None: not checked yet
        self._free: list[Tensor] = []

    def rows(self, batch: Batch, cotangents: Cotangents) -> "TapeRows":
        """One forward pass; the rest when a verb asks for it. The first micro-batch is checked by reverse mode."""
        recording, outputs_BC = self._record(batch)
        cotangents_BSC = cotangents(outputs_BC.detach())
        if self._wrong is None and len(batch) > 1:
            num_outputs = outputs_BC.shape[1]
            mixed_C = torch.linspace(1, 2, num_outputs) * (1 - 2 * (torch.arange(num_outputs) % 2))
            mixed_B1C = mixed_C.to(outputs_BC).expand(len(batch), 1, num_outputs)
            checked = TapeRows(self, batch, recording, outputs_BC, mixed_B1C)
            alone, alone_1C = self._record(
                Batch({name: value[:1] for name, value in batch.inputs.items()}, None, batch.indexes[:1])
            )
            self._wrong = wrong_blocks(self.network, checked, alone.to_weights(alone_1C, mixed_B1C[0]))
        recording.without_rule |= self._wrong or {}
        return TapeRows(self, batch, recording, outputs_BC, cotangents_BSC)

    def coverage(self, batch: Batch) -> Coverage:
        """Which weights have rules in a forward pass over these examples."""
        recording, _ = self._record(batch)
        return coverage_of(self.network, recording, len(batch))

    def _record(self, batch: Batch) -> tuple[Recording, Tensor]:
        network = self.network
        recording = Recording(self._leaves, len(batch), network.module, network.away)
        with torch.enable_grad(), recording.watching(), recording:
            recording.mark(batch.inputs)
            outputs_BC = network(batch.inputs, self._leaves)
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
