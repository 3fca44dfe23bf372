"""A fitted Gaussian in a subspace of the weights, ready to predict with the linearised network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.plan.opened import Opened
from afterfit.plan.predictions import read_posterior
from afterfit.plan.request import By, check_linearised
from afterfit.posterior.gaussian import Gaussian
from afterfit.posterior.links import Meaning
from afterfit.posterior.subspace import SubspacePosterior
from afterfit.predict.linearised import linearise
from afterfit.rows import row_backend
from afterfit.rows.columns import held_columns
from afterfit.seeds import Seed


@dataclass(frozen=True, eq=False)
class OpenedSubspace(Opened):
    """Facts: prior precision, temperature, complement, number of features, log evidence (nats)."""

    @property
    def kept(self) -> Sequence[str]:
        """With the basis."""
        return (*super().kept, "basis")

    @cached_property
    def weights(self) -> SubspacePosterior:
        """The Gaussian over weights, in the coordinates of its basis."""
        return read_posterior(self.artifact("posterior"))

    @cached_property
    def basis(self) -> Mapping[str, Tensor]:
        """V by tiles (P_tile, K); in memory where `memory_gb` allows."""
        tiles = self.artifact("basis").tiles("basis")
        return held_columns(tiles, self.network.layout, self.record.memory_gb)

    def predict(
        self, batch: Mapping[str, Tensor] | Batch, outputs: Sequence[int] | None = None, *, by: By = "linearised"
    ) -> Gaussian:
        """See `Posterior.predict`.

        Cost: one pass of rows over the batch, in micro-batches; B C K numbers are held. With many outputs, rows of a
        few take as many backward passes as are chosen.
        """
        check_linearised(by)
        pieces = self.pieces(batch)
        backend = row_backend(self.network, self.record.memory_gb, self.record.arithmetic)
        with_kernel = self.weights.complement == "prior"
        made = [linearise(backend, piece, self.basis, with_kernel=with_kernel, outputs=outputs) for piece in pieces]
        kernels = [part.kernel_BCC for part in made if part.kernel_BCC is not None]
        return self.weights.outputs(
            torch.cat([part.mean_BC for part in made]),
            torch.cat([part.features_BCK for part in made]),
            torch.cat(kernels) if kernels else None,
            likelihood=cast(Meaning, self.facts["likelihood"]),
            indexes=torch.cat([piece.indexes for piece in pieces]),
        )

    def draw(self, seed: int = 0, number: int = 0) -> dict[str, Tensor]:
        """Draw `number` of those that a seed names: block name -> tensor shaped like the block. Holds P numbers."""
        layout = self.network.layout
        moved = layout.assemble(dict(self.weights.draw(self.basis, Seed(seed), number)))
        return {name: self.network.weights[name] + moved[name].to(self.network.dtype) for name in moved}
