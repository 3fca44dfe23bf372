"""Stages of a method run in memory, without a store: for tests of numbers, of which an engine changes none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from afterfit.algebra import Progress, Result, State, Unit, Unsaved, merge_in_order
from afterfit.engine.gang import LoneGang
from afterfit.engine.progress import appended
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration
from afterfit.plan.bench import Bench, BenchSpec
from afterfit.plan.request import Method
from afterfit.plan.resolve import request_from_objects


@dataclass
class Made:
    """What a stage left behind, as an `Artifact`."""

    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    rounds: list[Mapping[str, float]] = field(default_factory=list)

    def add(self, result: Result) -> None:
        for family, tiles in result.tensors.items():
            self.kept.setdefault(family, {}).update(tiles)
        self.facts |= result.facts
        self.tables |= result.tables

    @property
    def families(self) -> Sequence[str]:
        return list(self.kept)

    def tiles(self, family: str) -> Mapping[str, Tensor]:
        return {name: tile.clone() for name, tile in self.kept[family].items()}

    def tensor(self, family: str) -> Tensor:
        tiles = list(self.kept[family].values())
        return torch.cat(tiles).clone() if tiles[0].dim() else torch.stack(tiles)

    def table(self, name: str) -> pa.Table:
        return self.tables[name]

    def state(self) -> State:
        return {f"{family}/{name}": tile for family, tiles in self.kept.items() for name, tile in tiles.items()}


class MemoryBench(Bench):
    """A bench whose inputs are in memory."""

    def __init__(self, spec: BenchSpec, inputs: Mapping[str, Made]) -> None:
        super().__init__(spec)
        object.__setattr__(self, "made", dict(inputs))

    def input(self, role: str) -> Any:
        return self.made[role]


def stages_in_memory(
    method: Method, module: nn.Module, data: Any, likelihood: Likelihood, **options: Any
) -> dict[str, Made]:
    """Stage name -> what it left behind, of the stages that a method declares for objects in memory."""
    request = request_from_objects(module, {"train": data}, method, likelihood, **options)
    spec = request.bench("", {})
    method.check(request.data["train"].num_examples, request.num_outputs)
    made: dict[str, Made] = {}
    for name, declaration in method.stages(likelihood, Bench(spec)).items():
        made[name] = run_stage(declaration, MemoryBench(spec, {r: made[up] for r, up in declaration.inputs.items()}))
    return made


def run_stage(declaration: Declaration, bench: MemoryBench) -> Made:
    """One stage."""
    recipe: Any = declaration.recipe
    units, bound, cursor = recipe.units(bench), recipe.on(bench), Unsaved()
    artifact = Made()
    if recipe.verb == "map":
        for unit in units:
            artifact.add(bound.run(unit, cursor))
    elif recipe.verb == "reduce":
        total = reduce(lambda left, right: {**left, **right}, _sums(bound, units, lambda u: bound.leaf(u, cursor)))
        artifact.add(bound.finalise(total))
    elif hasattr(bound, "num_slices"):  # steps of a gang
        state, gang = dict(bound.init()), LoneGang(bound.num_slices)
        figures: list[tuple[int, Mapping[str, float]]] = []
        stop = None
        while stop is None:
            state, progress = bound.step(state, len(figures), gang)
            stop = progress.stop
            figures.append((len(figures) + 1, progress.figures))
        artifact.add(bound.finalise(state, appended(None, "step", figures)))
    else:
        state, progress = dict(bound.init()), Progress(None, {})
        while progress.stop is None:
            given = state
            total = next(iter(_sums(bound, units, lambda unit, given=given: bound.leaf(given, unit, cursor))))
            moved, progress = bound.advance(given, total)
            state = {name: moved[name].clone() for name in moved}
            artifact.rounds.append(progress.figures)
        artifact.add(bound.finalise(state))
        artifact.facts["stop"] = progress.stop.name.lower()
    return artifact


def _sums(bound: Any, units: Sequence[Unit], leaf: Any) -> Iterator[State]:
    """The total of each tree."""
    for tree in dict.fromkeys(unit.tree for unit in units):
        yield merge_in_order(bound.merge, (dict(leaf(unit)) for unit in units if unit.tree == tree))
