"""Runs of draws that are made together: their numbers, the limits of a projection, and the facts that all leave."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from afterfit.algebra import Result, State
from afterfit.methods.projection.draws import family
from afterfit.methods.projection.protected import OverProtected
from afterfit.network.workbench import Outline


@dataclass(frozen=True)
class Chunk:
    """Draws `first` to `first + num - 1`, of noise that the seed and their numbers name."""

    first: int
    num: int
    seed: int

    @property
    def numbers(self) -> range:
        """Of the draws."""
        return range(self.first, self.first + self.num)


def chunked(num_draws: int, more_draws: Sequence[int], at_once: int) -> list[range]:
    """Draws that are made together. Those that were asked for first stay as they were when more are added."""
    chunks, start = [], 0
    for total in (num_draws, *more_draws):
        chunks += [range(first, min(first + at_once, total)) for first in range(start, total, at_once)]
        start = max(start, total)
    return chunks


class Rank(NamedTuple):
    """Of what draws are orthogonal to."""

    rank: int
    rank_is_bound: bool = False
    cut_off: float = 0.0  # squared sine below which a row counted as dependent; 0 where none was looked for


def facts_of(chunk: Chunk, solver: str, rank: Rank, residual: float = 0.0, passes: float = 0.0) -> dict[str, Any]:
    """What every artifact of draws says of itself; `residual` as in `DualProjection`."""
    made = {"first": chunk.first, "num": chunk.num, "solver": solver, "residual": residual, "passes": passes}
    return made | rank._asdict()


@dataclass(frozen=True)
class Projection(Chunk, OverProtected):
    """Draws that passes over the protected examples project."""

    tolerance: float = 1e-4
    max_passes: int = 200
    block_size: int = 50

    def most_rank(self, outline: Outline) -> Rank:
        """Where the solver does not find the rank."""
        return Rank(self.protected.most_rank(outline), rank_is_bound=True)

    def result(self, state: State, solver: str, rank: Rank, residual: float) -> Result:
        """From the last round's state, `draws` by tiles and `at/passes`."""
        facts = facts_of(self, solver, rank, residual, float(state["at/passes"]))
        facts["notes"] = list(self._notes(residual))
        return Result(tensors={"draws": family(state, "draws").items()}, facts=facts)

    def _notes(self, residual: float) -> Iterator[str]:
        """What people should know of draws that a solver left short of the tolerance."""
        if residual > self.tolerance:
            yield (
                f"The draws {self.numbers.start} to {self.numbers.stop - 1} move a protected row by {residual:.1e} of "
                f"both lengths, above `method.tolerance: {self.tolerance:g}`: protect fewer examples, so that "
                "`method.solver: exact` fits, raise `method.max_passes`, or loosen the tolerance."
            )
