"""What each stage will cost, counted from sizes before anything runs: work, memory, bytes stored, units."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from afterfit.algebra import Unit
from afterfit.errors import OutOfMemoryError, ResourceError
from afterfit.methods.subspace import NUM_CHUNKS
from afterfit.network.workbench import tiles_of
from afterfit.plan.counted import CORE_BYTES, Counted, features_counted, row_bytes
from afterfit.plan.draw_cost import DRAW_COSTS
from afterfit.plan.projection_cost import PROJECTION_COSTS
from afterfit.plan.query_cost import QUERY_COSTS
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import REFERENCE_FLOPS
from afterfit.plan.sizes import Sizes
from afterfit.plan.stage import Stage
from afterfit.plan.tuning import AUTO_PRIORS, AUTO_TEMPERATURES, NUM_PREFIXES, TUNING_DRAWS
from afterfit.plan.variational_cost import VARIATIONAL_COSTS
from afterfit.resources import GB

EIGEN_FLOPS = 10.0
"""Of a symmetric eigenproblem, times n^3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one stage."""

    flops: float
    memory_gb: float  # explicit at once in one worker, besides the network and its activations
    stored_bytes: float  # that its artifact will take
    num_units: int
    is_budgeted: bool = True  # whether `memory_gb` of the configuration bounds the memory
    device_gb: float = 0.0  # of the memory, that is on the GPU where the network is on one

    @property
    def seconds(self) -> float:
        """On one core of the reference device."""
        return self.flops / REFERENCE_FLOPS


def costs(plan: Sequence[Stage], request: FitRequest) -> dict[str, Cost | None]:
    """Stage name -> its cost, None where the recipe is not in the table."""
    sizes = Sizes.of(plan, request)
    return {stage.name: _cost(stage, sizes.on(stage)) for stage in plan}


def cost_of(plan: Sequence[Stage], request: FitRequest, name: str) -> Cost | None:
    """Of one stage of a plan."""
    stage = next(stage for stage in plan if stage.name == name)
    return _cost(stage, Sizes.of(plan, request).on(stage))


def check_fits(
    needed: Mapping[str, Cost | None],
    memory_gb: float,
    machine_gb: float | None,
    free_bytes: float | None,
    gpu_gb: float | None = None,
) -> None:
    """Refuse what cannot fit.

    Args:
        needed: of the stages that are still to be done.
        memory_gb: budget of the configuration.
        machine_gb: memory of the machine that will do the work, None where it is not known.
        free_bytes: of the store, None where it has no bound.
        gpu_gb: memory of the GPU that the network will be on, None where it will be on none, or it is not known.

    Raises:
        ResourceError: naming the stage and the remedy.
        OutOfMemoryError: if a stage whose memory the budget bounds exceeds the machine, or its GPU.
    """
    for name, cost in needed.items():
        if cost is None:
            continue
        if cost.is_budgeted and cost.memory_gb > memory_gb:
            raise ResourceError(
                f"The stage {name} holds {cost.memory_gb:.3g} GB at once, above `memory_gb: {memory_gb:g}`; "
                f"set `memory_gb` to {_rounded_up(cost.memory_gb):g}, ask the method for less, or choose "
                "fewer weights with `network.choose`."
            )
        if gpu_gb is not None:
            _check_device(name, cost, cost.device_gb, memory_gb, gpu_gb, on_gpu=True)
        if machine_gb is not None:
            on_host_gb = cost.memory_gb if gpu_gb is None else cost.memory_gb - cost.device_gb
            _check_device(name, cost, on_host_gb, memory_gb, machine_gb, on_gpu=False)
    total = sum(cost.stored_bytes for cost in needed.values() if cost is not None)
    if free_bytes is not None and total > free_bytes:
        raise ResourceError(
            f"The run will store {total / GB:.3g} GB, but the store's disk has {free_bytes / GB:.3g} GB "
            "free; free some space, or take another store (--store)."
        )


def _check_device(name: str, cost: Cost, held_gb: float, memory_gb: float, has_gb: float, *, on_gpu: bool) -> None:
    """Refuse what exceeds one device."""
    if held_gb <= has_gb:
        return
    held, place = f"The stage {name} holds {held_gb:.3g} GB at once", "the GPU" if on_gpu else "this machine"
    has = f"but {place} has {has_gb:.3g} GB"
    if cost.is_budgeted:
        said = f"{held} with `memory_gb: {memory_gb:g}`, {has}."
        raise OutOfMemoryError(said, stage=name, has_gb=has_gb, on_gpu=on_gpu, is_counted=True)
    raise ResourceError(f"{held}, {has}; choose fewer weights with `network.choose`, or run on larger workers.")


def _rounded_up(gigabytes: float) -> float:
    """To two digits, never below."""
    scale = 10 ** (math.floor(math.log10(gigabytes)) - 1)
    return math.ceil(gigabytes / scale) * scale


CountedBy = Callable[[Any, Sequence[Unit], Sizes], Counted]


def _cost(stage: Stage, sizes: Sizes) -> Cost | None:
    count = COSTS.get(type(stage.recipe).__name__)
    if count is None:
        return None
    units = stage.recipe.units(sizes)  # type: ignore[arg-type]  # an outline of sizes only
    counted = count(stage.recipe, units, sizes)
    return Cost(
        flops=counted.flops,
        memory_gb=counted.explicit_bytes / GB,
        stored_bytes=counted.stored_bytes,
        num_units=max(len(units), 1),
        is_budgeted=counted.is_budgeted,
        device_gb=counted.device_bytes / GB,
    )


def _point_estimate(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    work = 3 * sizes.forward(sizes.num_examples("train")) * recipe.settings.epochs
    weights = sizes.num_weights * sizes.state_bytes
    return Counted(work, 4 * weights, weights, is_budgeted=False, device_bytes=4 * weights)


def _loaded(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return Counted(0.0, 0.0, 0.0)


def _noise(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return Counted(sizes.forward(sizes.num_examples("train")), 0.0, 0.0)


def _landmarks(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return Counted(0.0, 0.0, 2 * 8.0 * sizes.num_landmarks)


def _weights_of(unit: Unit, sizes: Sizes) -> int:
    return sum(tile.size for tile in tiles_of(sizes.layout, unit))


def _ntk_gram(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    work, explicit = 0.0, 0.0
    for unit in units:
        left, right = (len(range(*unit.details[side])) for side in ("left", "right"))
        num_rows = left if unit.details["left"] == unit.details["right"] else left + right
        weights = _weights_of(unit, sizes)
        work += 3 * sizes.forward(num_rows) + 2.0 * left * right * weights
        explicit = max(explicit, float(num_rows * weights * sizes.state_bytes))
    core = CORE_BYTES * float(sizes.num_landmarks**2)
    block = CORE_BYTES * float(max(len(range(*unit.details["left"])) for unit in units) ** 2)
    # A leaf holds its rows, a product and a sum; the eigenproblem the Gram, the vectors and its workspace.
    return Counted(work + EIGEN_FLOPS * sizes.num_landmarks**3, max(explicit + 2 * block, 3 * core), core)


def _ntk_basis(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    num_rows, kept = sizes.num_landmarks, sizes.num_features
    work = 3 * sizes.forward(num_rows) * len(units) + 2.0 * num_rows * kept * sizes.num_weights
    widest = max(_weights_of(unit, sizes) for unit in units)
    stored = float(sizes.num_weights * kept * sizes.state_bytes)
    chunk = int(units[0].details["chunk"])
    held = num_rows + kept if chunk == num_rows else chunk + 2 * kept
    return Counted(work, float(held * widest * sizes.state_bytes), stored)


def _subspace_curvature(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    count, kept = sizes.num_examples("train"), sizes.num_features
    work = sizes.times(count, kept) + 2.0 * count * sizes.num_outputs * kept**2
    stored = _chunks_bytes("train", sizes)
    rows = row_bytes("train", sizes)
    return Counted(work, rows + sizes.columns_bytes(kept) + stored / len(units), stored, device_bytes=rows)


def _chunks_bytes(role: str, sizes: Sizes) -> float:
    """Curvature (K, K) of each chunk of each shard."""
    positions = [-(-len(shard) // sizes.micro_batch) for shard in sizes.shards(role)]
    return CORE_BYTES * float(sizes.num_features**2) * sum(min(NUM_CHUNKS, each) for each in positions)


def _union_of_chunks(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    stored = sum(_chunks_bytes(role, sizes) for role in ("train", *sizes.request.extensions))
    return Counted(0.0, CORE_BYTES * float(sizes.num_features**2), stored)


def _sum_of_totals(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    widest = max(tile.size for tile in sizes.layout)
    image = float(sizes.num_weights * sizes.num_probes)
    tile_bytes = widest * sizes.num_probes * sizes.state_bytes
    return Counted(image * (len(recipe.roles) - 1), 3.0 * tile_bytes, image * sizes.state_bytes)


def _output_features(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    return features_counted(recipe, sizes.num_features, units, sizes)


def _tuning(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    kept, outputs = sizes.num_features, sizes.num_outputs
    validates = recipe.objective == "validation"
    grid = (
        (len(AUTO_PRIORS) if recipe.prior_precision == "auto" else 1)
        * (len(AUTO_TEMPERATURES) if recipe.temperature == "auto" and validates else 1)
        * (NUM_PREFIXES if recipe.data_fraction == "auto" else 1)
    )
    count = sizes.num_examples("validation") if validates and "validation" in sizes.request.data else 0
    features = float(count * outputs * kept * sizes.state_bytes)
    point = EIGEN_FLOPS * kept**3 + _outputs_work(count, sizes, TUNING_DRAWS)
    return Counted(grid * point, 3 * features, 0.0, is_budgeted=False)


def _outputs_work(count: int, sizes: Sizes, num_draws: int) -> float:
    """From cached features to probabilities: the covariance (C, C) of each example, and draws from it."""
    kept, outputs = sizes.num_features, sizes.num_outputs
    return float(count) * (2 * outputs * kept**2 + 2 * outputs**2 * kept + num_draws * (2 * outputs**2 + 4 * outputs))


def _fit_posterior(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    core = CORE_BYTES * float(sizes.num_features**2)
    return Counted(EIGEN_FLOPS * sizes.num_features**3, 3 * core, core)


def _predictions(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    count, outputs = sizes.num_examples(recipe.role), sizes.num_outputs
    features = count * outputs * (1 + sizes.num_features) * sizes.state_bytes / len(units)
    stored = float(count * (4 * outputs * sizes.state_bytes + 2 * 8))
    return Counted(_outputs_work(count, sizes, recipe.num_draws), 3 * features, stored, is_budgeted=False)


def _scores(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    roles = (*recipe.in_distribution, *recipe.out_of_distribution)
    held = sum(sizes.num_examples(role) for role in roles) * 4.0 * sizes.num_outputs * sizes.state_bytes
    return Counted(held, held, 0.0, is_budgeted=False)


def _ggn_sketch(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    sizes = replace(sizes, num_samples=recipe.num_samples)
    count, probes = sizes.num_examples("train"), recipe.num_probes
    groups = len({unit.tree for unit in units})
    image = probes * sizes.num_weights
    widest = max(_weights_of(unit, sizes) for unit in units)
    rows = row_bytes("train", sizes)
    return Counted(
        sizes.ggn_times(count, probes, groups),
        rows + sizes.columns_bytes(probes) + widest * probes * sizes.state_bytes,
        float(image * sizes.state_bytes),
        device_bytes=rows,
    )


def _nystrom_curvature(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    probes = recipe.num_probes
    widest = max(tile.size for tile in sizes.layout)
    core = CORE_BYTES * float(probes**2)
    work = 4.0 * sizes.num_weights * probes**2 + EIGEN_FLOPS * probes**3
    return Counted(work, 2.0 * widest * probes * CORE_BYTES + 2 * len(units) * core, 2 * core)


def _nystrom_basis(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    probes, kept = sizes.num_probes, sizes.num_features
    widest = max(tile.size for tile in sizes.layout)
    stored = float(sizes.num_weights * kept * sizes.state_bytes)
    return Counted(2.0 * sizes.num_weights * probes * kept, float(widest * (probes + kept) * CORE_BYTES), stored)


COSTS: Final[Mapping[str, CountedBy]] = {
    "PointEstimate": _point_estimate,
    "LoadedWeights": _loaded,
    "NoiseVariance": _noise,
    "Landmarks": _landmarks,
    "NtkGram": _ntk_gram,
    "NtkBasis": _ntk_basis,
    "SubspaceCurvature": _subspace_curvature,
    "OutputFeatures": _output_features,
    "Tuning": _tuning,
    "FitPosterior": _fit_posterior,
    "Predictions": _predictions,
    "Scores": _scores,
    "UnionOfChunks": _union_of_chunks,
    "SumOfTotals": _sum_of_totals,
    "GgnSketch": _ggn_sketch,
    "NystromCurvature": _nystrom_curvature,
    "NystromBasis": _nystrom_basis,
    **DRAW_COSTS,
    **PROJECTION_COSTS,
    **QUERY_COSTS,
    **VARIATIONAL_COSTS,
}
"""Class name of a recipe -> how its cost is counted."""
