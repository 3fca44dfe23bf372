"""The noise variance of a regression, where it is not known: the mean squared residual on the training data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from afterfit.algebra import Batch, Cursor, Result, State, Unit, add, fold_examples
from afterfit.errors import NumericalError
from afterfit.network.workbench import Outline, Workbench, shard_units
from afterfit.precision import CORE


@dataclass(frozen=True)
class NoiseVariance:
    """Maximum-likelihood noise variance, one number for all outputs. Leaves behind the fact `noise_variance`."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "reduce"

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Shards of the training data."""
        return shard_units(outline, "train")

    def on(self, bench: Workbench) -> "ResidualSum":
        """Needs the network and the training data."""
        return ResidualSum(bench)


@dataclass(frozen=True)
class ResidualSum:
    """Accumulates squared residuals and their number."""

    bench: Workbench

    def init(self) -> State:
        """No data."""
        return {"squares/all": torch.zeros(1, dtype=CORE), "count/all": torch.zeros(1, dtype=torch.int64)}

    def accumulate(self, state: State, batch: Batch) -> State:
        """Add one micro-batch."""
        if batch.targets is None:
            raise NumericalError("The training data have no targets; name their `target` column.")
        with torch.no_grad():
            outputs_BC = self.bench.network(batch.inputs).double().cpu()
        squares = (batch.targets.reshape(outputs_BC.shape).double() - outputs_BC).square().sum()
        return {
            "squares/all": state["squares/all"] + squares,
            "count/all": state["count/all"] + outputs_BC.numel(),
        }

    def merge(self, left: State, right: State) -> State:
        """Plain addition."""
        return add(left, right)

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        """One shard."""
        start, stop = unit.details["start"], unit.details["stop"]
        return fold_examples(self, self.bench.data("train"), range(start, stop), self.bench.micro_batch, cursor)

    def finalise(self, state: State) -> Result:
        """The mean."""
        variance = float(state["squares/all"]) / float(state["count/all"])
        if not 0 < variance < float("inf"):
            raise NumericalError(
                f"The mean squared residual is {variance}, which is no noise variance; give `noise_variance`."
            )
        return Result(facts={"noise_variance": variance})
