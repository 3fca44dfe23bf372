"""A fitted posterior with its network and its store: what every kind has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from afterfit.algebra import Batch, Result, pieces_of
from afterfit.errors import ConfigError
from afterfit.network.functional import Network
from afterfit.plan.fitted import FitRecord
from afterfit.plan.request import By, centre_of
from afterfit.posterior.outputs import Outputs
from afterfit.store.directory import Store, open_store

if TYPE_CHECKING:
    from afterfit.store.artifact import StoredArtifact


class Posterior(Protocol):
    """A fitted posterior over the weights of a network, ready to predict. `fit` and `load` give one."""

    @property
    def network(self) -> Network:
        """With the trained weights."""
        ...

    @property
    def store(self) -> Store:
        """Where its artifacts are."""
        ...

    @property
    def record(self) -> FitRecord:
        """What the store remembers of the fit."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Numbers that describe it."""
        ...

    def predict(
        self, batch: Mapping[str, Tensor] | Batch, outputs: Sequence[int] | None = None, *, by: By = "linearised"
    ) -> Outputs:
        """Mean (B, C) and covariance (B, C, C) of the outputs, and probabilities from them.

        Args:
            batch: inputs keyed by forward's argument names; `label` and `target` are passed over.
            outputs: indexes of S outputs to predict, in place of all C; probabilities are then among these alone.
            by: "network" evaluates the network itself at stored draws, in place of the linearised one.

        Raises:
            ConfigError: for a batch without inputs, outputs that there are not, or the plain network without draws.
        """
        ...

    def draw(self, seed: int = 0, number: int = 0) -> dict[str, Tensor]:
        """One draw of the weights: block name -> tensor shaped like the block. Holds P numbers."""
        ...

    def save(self, uri: str) -> None:
        """Copy what prediction needs into a store, local or remote. Nothing is copied twice.

        Raises:
            StoreError: if the store cannot be written.
        """
        ...


@dataclass(frozen=True, eq=False)
class Opened:
    """The part of a `Posterior` that does not depend on its kind."""

    network: Network
    store: Store
    record: FitRecord

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage `posterior` says of itself."""
        return self.artifact("posterior").facts

    @property
    def kept(self) -> Sequence[str]:
        """Stages that it predicts from; `save` copies these."""
        return tuple(dict.fromkeys(("point_estimate", centre_of(self.record.stages), "posterior")))

    def artifact(self, stage: str) -> StoredArtifact:
        """Of a stage of the fit."""
        return self.store.read(self.record.stages[stage])

    def save(self, uri: str) -> None:
        """See `Posterior.save`."""
        target = open_store(uri)
        for stage in self.kept:
            _copy(self.artifact(stage), target)
        self.record.write(target)

    def whole(self, batch: Mapping[str, Tensor] | Batch) -> Batch:
        """A batch, answers left out.

        Raises:
            ConfigError: for a batch without inputs.
        """
        inputs = batch.inputs if isinstance(batch, Batch) else batch
        inputs = {name: value for name, value in inputs.items() if name not in ("label", "target")}
        if not inputs:
            raise ConfigError("The batch has no inputs; give a mapping keyed by forward's argument names.")
        num_examples = len(next(iter(inputs.values())))
        indexes = batch.indexes if isinstance(batch, Batch) else torch.arange(num_examples)
        return Batch(inputs, None, indexes)

    def pieces(self, batch: Mapping[str, Tensor] | Batch) -> list[Batch]:
        """The same in micro-batches."""
        return list(pieces_of(self.whole(batch), self.record.micro_batch))


def _copy(artifact: StoredArtifact, target: Store) -> None:
    if artifact.parts:
        for part in artifact.parts:
            _copy(part, target)
        target.adopt(artifact.place, [part.place for part in artifact.parts], about=dict(artifact.about))
        return
    result = Result(
        tensors={family: artifact.tiles(family).items() for family in artifact.families},
        tables={name: artifact.table(name) for name in artifact.tables},
        facts=artifact.facts,
    )
    target.write(artifact.place, result, dict(artifact.about))
