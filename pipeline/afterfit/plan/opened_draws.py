"""A fitted posterior of stored draws, ready to predict with the linearised network or with the network itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.errors import ConfigError
from afterfit.network.moved import moved_weights
from afterfit.plan.draws_tail import CHUNK, chunks_of
from afterfit.plan.opened import Opened
from afterfit.plan.request import By
from afterfit.posterior.links import Meaning
from afterfit.posterior.stored_draws import StoredDraws
from afterfit.predict.linearised import linearise
from afterfit.predict.sampled import plain_outputs
from afterfit.rows import row_backend
from afterfit.rows.columns import held_columns
from afterfit.rows.protocol import check_outputs
from afterfit.store.artifact import StoredArtifact


@dataclass(frozen=True, eq=False)
class OpenedDraws(Opened):
    """Facts: scale, number of draws, solver, residual beside that of isotropic noise, rank, largest loss change."""

    @property
    def kept(self) -> Sequence[str]:
        """With the draws."""
        return (*super().kept, *(f"{CHUNK}{chunk}" for chunk in chunks_of(self.record.stages)))

    @property
    def num_draws(self) -> int:
        """S, all that are stored."""
        return self.facts["num_draws"]

    @property
    def scale(self) -> float:
        """Standard deviation of a draw, in units of the weights, inside the kernel."""
        return self.facts["scale"]

    @cached_property
    def _chunks(self) -> Sequence[StoredArtifact]:
        return [self.artifact(f"{CHUNK}{chunk}") for chunk in chunks_of(self.record.stages)]

    def predict(
        self, batch: Mapping[str, Tensor] | Batch, outputs: Sequence[int] | None = None, *, by: By = "linearised"
    ) -> StoredDraws:
        """See `Posterior.predict`; outputs under all stored draws.

        Cost: linearised, one pass of rows over the batch for each chunk of draws, in micro-batches; by the network, a
        forward pass for each draw, and P numbers are held. B C S numbers are held either way.
        """
        pieces = self.pieces(batch)
        mean_BC, moved_BCS = (self._linearised if by == "linearised" else self._plain)(pieces, outputs)
        return StoredDraws(mean_BC, moved_BCS, cast(Meaning, self.facts["likelihood"]))

    def _linearised(self, pieces: Sequence[Batch], outputs: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        backend = row_backend(self.network, self.record.memory_gb, self.record.arithmetic)
        means, moved = [], []
        for chunk in self._chunks:
            tiles = held_columns(chunk.tiles("draws"), self.network.layout, self.record.memory_gb)
            made = [linearise(backend, piece, tiles, with_kernel=False, outputs=outputs) for piece in pieces]
            means = [part.mean_BC for part in made]
            moved.append(torch.cat([part.features_BCK for part in made]))
        return torch.cat(means), self.scale * torch.cat(moved, dim=2)

    def _plain(self, pieces: Sequence[Batch], outputs: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        device = self.network.device
        mean_BC = plain_outputs(self.network, pieces).to(device)
        chosen = list(range(mean_BC.shape[1])) if outputs is None else list(outputs)
        check_outputs(chosen, mean_BC.shape[1])
        moved = [plain_outputs(self.network, pieces, weights)[:, chosen] for weights in self._all_weights()]
        return mean_BC[:, chosen], torch.stack(moved, dim=2).to(device) - mean_BC[:, chosen, None]

    def _all_weights(self) -> Iterator[dict[str, Tensor]]:
        for number in range(self.num_draws):
            yield self.draw(number=number)

    def draw(self, seed: int = 0, number: int = 0) -> dict[str, Tensor]:
        """Stored draw `number`: block name -> theta + scale d, shaped like the block. Holds P numbers.

        Raises:
            ConfigError: for a seed, which cannot make others, or a draw beyond those that are stored.
        """
        if seed:
            raise ConfigError("Stored draws were named by the seed of the method; ask for a draw by its number alone.")
        if not 0 <= number < self.num_draws:
            raise ConfigError(
                f"There is no draw {number}: {self.num_draws} are stored, numbered from 0; store more with "
                f"`afterfit extend STORE --more-draws {max(number + 1, 1)}`, or call `fit` with a larger `num_draws`."
            )
        chunk = next(chunk for chunk in reversed(self._chunks) if chunk.facts["first"] <= number)
        return moved_weights(self.network, chunk.tiles("draws"), number - chunk.facts["first"], self.scale)
