"""The kernel of 2 000 landmark rows as ELLA sums it, beside explicit Jacobians by reverse mode.

    python jobs/benchmarks/ntk.py [--only resnet20] [--landmarks 2000]

Ours is the recipe of the stage `gram`: its units, its micro-batches, its `memory_gb`, without the store. Theirs is what
one writes by hand within the same memory: whole rows J_i of a chunk of landmarks, one example after another by reverse
mode over all weights (on a CPU that is quicker than `vmap`), kept, and multiplied with the rows of each later chunk,
which are made again. Both in turns on one thread, in CPU seconds. Memory is what the process holds for itself,
interpreter and torch included; `extra` is that without what a pass over one micro-batch takes.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import afterfit
from afterfit.algebra import Reducer, State, Unit, merge_in_order
from afterfit.engine import open_engine
from afterfit.engine.events import PeakMemory
from afterfit.network.cifar_resnet import resnet20
from afterfit.network.likelihoods import Categorical
from afterfit.plan.bench import Bench
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import request_from_objects
from afterfit.resources import GB
from afterfit.store.directory import open_store
from networks import minilm
from record import Target, open_record, show

NUM_LANDMARKS, NUM_OUTPUTS = 2000, {"resnet20": 10, "minilm": 3}
TOKENS = 32
MEMORY_GB = 2.0
ROWS_SHARE = 0.75
"""Part of it that explicit rows take: ELLA's own share, given to the other side too."""
GRAM_GB = NUM_LANDMARKS**2 * 8 / GB
TURNS = 2
"""Runs of consecutive units of each side, one side after the other, where an hour does not allow all."""
BLOCK = 1 << 16
"""Weights whose products are summed in float32; longer sums of theirs would lose three digits of a Gram."""
COMPARED = 8
"""Landmarks whose two Grams are compared where not all are measured: their whole rows fit the memory."""
TARGETS: Mapping[str, Target] = {
    **{f"ntk2000_difference_{net}": ("<=", 1e-4) for net in NUM_OUTPUTS},
    # Sums in a tree hold a Gram for each of its levels: over 6 tiles, and over 571.
    "ntk2000_extra_gb_resnet20": ("<=", MEMORY_GB + 4 * GRAM_GB),
    "ntk2000_extra_gb_minilm": ("<=", MEMORY_GB + 11 * GRAM_GB),
}


@dataclass(frozen=True)
class Case:
    """A network with random weights, an input for each landmark, and how much of the work an hour allows."""

    name: str
    build: Callable[[], nn.Module]
    key: str  # forward's argument
    inputs: Callable[[int], Tensor]
    units: tuple[int, int] | None = None  # of ours and of theirs in each of TURNS; None for all


def _images(num: int) -> Tensor:
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _sentences(num: int) -> Tensor:
    return torch.randint(0, 30522, (num, TOKENS), generator=torch.Generator().manual_seed(1))


CASES = (
    Case("resnet20", resnet20, "pixel_values", _images),
    Case("minilm", minilm, "input_ids", _sentences, units=(1, 30)),
)


class Side(Protocol):
    """One way to the Gram: pieces of work whose results add up to it."""

    @property
    def pieces(self) -> Sequence[Any]:
        """All of the work."""
        ...

    def run(self, pieces: Sequence[Any]) -> None:
        """Do some of them."""
        ...

    def gram(self) -> Tensor:
        """(M, M), after all of them."""
        ...

    def first(self, num: int) -> Tensor:
        """The Gram of the first landmarks alone, (num, num)."""
        ...


class Ours:
    """The recipe, its units one after another."""

    def __init__(self, bench: Bench, recipe: Any):
        self.bench = bench
        self.reducer: Reducer = recipe.on(bench)
        self.pieces: list[Unit] = recipe.units(bench)
        self._trees: dict[str, State] = {}

    def run(self, pieces: Sequence[Unit]) -> None:
        """Their blocks of the Gram, added as the engine adds them: pairs of equal height at once."""
        for tree in dict.fromkeys(unit.tree for unit in pieces):
            states = (self.reducer.leaf(unit, _NO_CURSOR) for unit in pieces if unit.tree == tree)
            self._trees[tree] = merge_in_order(self.reducer.merge, states)

    def gram(self) -> Tensor:
        """From its eigenpairs, which are what the stage leaves behind."""
        return _gram_of(self.reducer, {name: block for state in self._trees.values() for name, block in state.items()})

    def first(self, num: int) -> Tensor:
        """As one unit of all tiles."""
        tiles = [tile.name for tile in self.bench.layout]
        unit = Unit("first", {"tiles": tiles, "left": [0, num], "right": [0, num]}, tree="000000-000000")
        return _gram_of(self.reducer, self.reducer.leaf(unit, _NO_CURSOR))


_NO_CURSOR: Any = None
"""Units of a Gram are short and keep nothing."""


def _gram_of(reducer: Reducer, state: State) -> Tensor:
    tensors = {name: next(iter(tiles))[1] for name, tiles in reducer.finalise(state).tensors.items()}
    return (tensors["eigenvectors"] * tensors["eigenvalues"]) @ tensors["eigenvectors"].T


class Explicit:
    """Whole rows of two chunks of landmarks within the memory; pieces are pairs of chunks, the left one kept."""

    def __init__(self, bench: Bench, memory_gb: float):
        table = bench.input("landmarks").table("landmarks")
        self.bench = bench
        self.landmarks = list(zip(table["example"].to_pylist(), table["output"].to_pylist(), strict=True))
        self.row_bytes = 4 * bench.layout.num_weights
        num = len(self.landmarks)
        chunk = min(num, max(1, int(ROWS_SHARE * memory_gb * GB / self.row_bytes / 2)))
        chunks = [range(start, min(start + chunk, num)) for start in range(0, num, chunk)]
        self.pieces = [(left, right) for left in chunks for right in chunks if left.start <= right.start]
        self._gram_MM = torch.zeros(num, num, dtype=torch.float64)
        self._left: tuple[range, Tensor] | None = None

    def run(self, pieces: Sequence[tuple[range, range]]) -> None:
        """Rows of the right chunk, those of the left one where it is another than before, and their product."""
        for left, right in pieces:
            if self._left is None or self._left[0] != left:
                self._left = None  # before the next one is made
                self._left = left, self._rows(left)
            left_XP = self._left[1]
            right_YP = left_XP if left == right else self._rows(right)
            block_XY = product(left_XP, right_YP)
            self._gram_MM[left.start : left.stop, right.start : right.stop] = block_XY
            self._gram_MM[right.start : right.stop, left.start : left.stop] = block_XY.T
            del right_YP
        self._left = None

    def gram(self) -> Tensor:
        """As it is."""
        return self._gram_MM

    def first(self, num: int) -> Tensor:
        """Of whole rows."""
        rows_XP = self._rows(range(num))
        return product(rows_XP, rows_XP)

    def _rows(self, chosen: range) -> Tensor:
        """(len(chosen), P)."""
        network = self.bench.network
        leaves = {name: weight.detach().requires_grad_() for name, weight in network.weights.items()}
        rows_XP = torch.empty(len(chosen), network.layout.num_weights)
        for row_P, number in zip(rows_XP, chosen, strict=True):
            example, output = self.landmarks[number]
            made = network(self.bench.data("train").batch([example]).inputs, leaves)[0, output]
            gradients = torch.autograd.grad(made, list(leaves.values()), allow_unused=True)
            start = 0
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                into = row_P[start : start + leaf.numel()]
                into.zero_() if gradient is None else into.copy_(gradient.flatten())
                start += leaf.numel()
        return rows_XP


def prepared(case: Case, num_landmarks: int, folder: str) -> tuple[FitRequest, Bench, Any]:
    """The request of a fit whose landmarks are chosen, its bench, and the recipe of the Gram."""
    torch.manual_seed(0)
    inputs, num_outputs = case.inputs(num_landmarks), NUM_OUTPUTS[case.name]
    items = [{case.key: value, "label": number % num_outputs} for number, value in enumerate(inputs)]
    method = afterfit.Ella(num_landmarks=num_landmarks, num_features=20, prior_precision=1.0, temperature=1.0)
    request = request_from_objects(
        case.build().eval(), {"train": items}, method, Categorical(), memory_gb=MEMORY_GB, num_shards=1
    )
    store = open_store(folder)
    stages = {stage.name: stage for stage in posterior_plan(request)}
    with open_engine("inprocess", store) as engine:
        execute([stages["point_estimate"], stages["landmarks"]], request, engine, store)
    gram = stages["gram"]
    spec = request.bench(folder, {role: stage.place for role, stage in gram.inputs.items()})
    return request, Bench(spec), gram.recipe


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, and the peak in GB."""
    gc.collect()
    started = time.process_time()
    with PeakMemory() as peak:
        run()
    return time.process_time() - started, peak.bytes / GB


def product(left_XP: Tensor, right_YP: Tensor) -> Tensor:
    """(X, Y) in float64, summed by blocks."""
    pairs = zip(left_XP.split(BLOCK, dim=1), right_YP.split(BLOCK, dim=1), strict=True)
    return torch.stack([(left_Xp @ right_Yp.T).double() for left_Xp, right_Yp in pairs]).sum(dim=0)


def runs(pieces: Sequence[Any], each: int | None) -> list[Sequence[Any]]:
    """All pieces as one run; or a run of some, consecutive, from the middle of each of TURNS parts."""
    if each is None or each * TURNS >= len(pieces):
        return [pieces]
    starts = [int((turn + 0.5) * len(pieces) / TURNS) - each // 2 for turn in range(TURNS)]
    return [pieces[start : start + each] for start in starts]


def measure(case: Case, num_landmarks: int, budget: str) -> tuple[dict[str, float], str]:
    """Figures of one network, and what of the work was done."""
    with tempfile.TemporaryDirectory() as folder:
        request, bench, recipe = prepared(case, num_landmarks, folder)
        sides: dict[str, Side] = {"afterfit": Ours(bench, recipe), "explicit": Explicit(bench, MEMORY_GB)}
        asked = case.units if budget == "hour" and case.units else (None, None)
        chosen = {name: runs(side.pieces, each) for (name, side), each in zip(sides.items(), asked, strict=True)}
        done = {name: sum(map(len, chosen[name])) for name in sides}
        is_whole = all(done[name] == len(side.pieces) for name, side in sides.items())
        seconds, peaks = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
        _, passing_gb = measured(partial(step, bench))
        for turn in range(TURNS):
            for name, side in sides.items():
                for pieces in chosen[name][turn : turn + 1]:
                    taken, peak_gb = measured(partial(side.run, pieces))
                    seconds[name] += taken * len(side.pieces) / done[name]
                    peaks[name] = max(peaks[name], peak_gb)
        one, other = (side.gram() if is_whole else side.first(COMPARED) for side in sides.values())
        figures = {
            "seconds": seconds["afterfit"],
            "explicit_seconds": seconds["explicit"],
            "ratio_explicit_over_afterfit": seconds["explicit"] / seconds["afterfit"],
            "peak_gb": peaks["afterfit"],
            "explicit_peak_gb": peaks["explicit"],
            "extra_gb": max(peaks["afterfit"] - passing_gb, 0.0),
            "difference": float((one - other).norm() / other.norm()),
        }
        told = f"{num_landmarks} landmarks of random data, {MEMORY_GB:g} GB, micro-batches of {request.micro_batch}"
        if not is_whole:
            some = ", ".join(f"{done[name]} of {len(side.pieces)} units of {name}" for name, side in sides.items())
            told += f"; {some}, times scaled by their number; Grams compared on {COMPARED} landmarks"
        return figures, told


def step(bench: Bench) -> None:
    """A pass over one micro-batch, there and back to the weights."""
    network, batch = bench.network, bench.data("train").batch(range(bench.micro_batch))
    leaves = {name: weight.detach().requires_grad_() for name, weight in network.weights.items()}
    torch.autograd.grad(network(batch.inputs, leaves).sum(), list(leaves.values()), allow_unused=True)


def main() -> int:
    """Both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--landmarks", type=int, default=NUM_LANDMARKS, help="fewer are tried, and not recorded")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        if given.only in (None, case.name):
            figures, told = measure(case, given.landmarks, given.budget)
            print(case.name, {name: f"{value:.4g}" for name, value in figures.items()}, told)
            if given.landmarks == NUM_LANDMARKS:
                named = {f"ntk2000_{name}_{case.name}": value for name, value in figures.items()}
                open_record("ntk", given.budget, TARGETS).adding(named, **{case.name: told})
    return 1 if show(open_record("ntk", given.budget, TARGETS)) else 0


if __name__ == "__main__":
    sys.exit(main())
