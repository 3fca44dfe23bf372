"""Every step of SLANG on every tiny network against the same step with dense P x P matrices, in float64."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from afterfit.engine.gang import LoneGang
from afterfit.methods.ggn_nystrom import GgnNystrom
from afterfit.methods.natural_gradient.recipe import NaturalGradient
from afterfit.methods.natural_gradient.steps import NaturalGradientSteps
from afterfit.methods.slang import Slang
from afterfit.plan.bench import Bench
from afterfit.plan.resolve import request_from_objects
from afterfit.seeds import Seed, normals
from cases import NETWORK_CASES, NetworkCase, assert_near, case_named, dense_ggn, dense_jacobian
from memory_engine import MemoryBench, stages_in_memory

PRIOR, ALPHA, BETA, MOMENTUM, TEMPERATURE = 0.7, 0.1, 0.2, 0.9, 1.5


def steps_of(
    case: NetworkCase,
    num_slices: int,
    rank: int,
    *,
    draws: int = 2,
    micro_batch: int = 2,
    tile_weights: int = 48,
    **choices: Any,
) -> NaturalGradientSteps:
    """Of a bench in memory."""
    recipe = NaturalGradient(
        likelihood=case.likelihood,
        rank=rank,
        draws_per_step=draws,
        batch_size=6,
        epochs=2,
        learning_rate=ALPHA,
        precision_rate=BETA,
        momentum=MOMENTUM,
        initial_precision=2.0,
        prior_precision=PRIOR,
        temperature=TEMPERATURE,
        num_slices=num_slices,
        **choices,
    )
    options = {"tile_weights": tile_weights, "memory_gb": 0.1, "micro_batch": micro_batch, "output": case.output}
    request = request_from_objects(
        case.module(), {"train": case.items}, GgnNystrom(num_probes=4), case.likelihood, **options
    )
    return recipe.on(Bench(request.bench("", {})))


def dense(steps: NaturalGradientSteps, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Families of the state over all weights."""
    tiles = steps.bench.layout.tiles
    return {
        family: torch.cat([state[f"{family}/{tile.name}"] for tile in tiles])
        for family in ("factor", "diagonal", "mean", "momentum")
    }


def dense_rows(
    case: NetworkCase, steps: NaturalGradientSteps, before: Mapping[str, Tensor], number: int
) -> tuple[Tensor, float]:
    """Gradients of all pairs of a draw and an example (X, P), and what one counts for; draws by the symmetric root."""
    network, layout = case.network(), steps.bench.layout
    precision_PP = before["factor"] @ before["factor"].mT + before["diagonal"].diag()
    half_P = before["diagonal"].rsqrt()
    values, vectors = torch.linalg.eigh(torch.diag(half_P) @ precision_PP @ torch.diag(half_P))
    root_PP = half_P[:, None] * ((vectors * values.rsqrt()) @ vectors.mT)
    examples = case.examples.batch(steps.epochs.batch(number))
    rows = []
    for draw in range(steps.recipe.draws_per_step):
        place = Seed(0, ("slang",)).child(number, draw)
        noise = [normals(place.child(tile.name), tile.size, dtype=torch.float64) for tile in layout.tiles]
        drawn_P = before["mean"] + root_PP @ torch.cat(noise)
        cut = {tile.name: drawn_P[tile.offset : tile.offset + tile.size] for tile in layout.tiles}
        moved = network.at(layout.assemble(cut))
        with torch.no_grad():
            slopes_BC = case.likelihood.gradient(moved(examples.inputs), examples.targets)
        rows.append(torch.einsum("bc,bcp->bp", slopes_BC, dense_jacobian(moved, examples)))
    rows_XP = torch.cat(rows)
    return rows_XP, case.num_examples / (len(rows_XP) * TEMPERATURE)


def dense_step(
    case: NetworkCase, steps: NaturalGradientSteps, before: Mapping[str, Tensor], number: int
) -> dict[str, Tensor]:
    """After a step: P x P products, a full eigenproblem and a dense solve."""
    rows_XP, weight = dense_rows(case, steps, before, number)
    low_PP = (1 - BETA) * before["factor"] @ before["factor"].mT + BETA * weight * rows_XP.mT @ rows_XP
    values, vectors = torch.linalg.eigh(low_PP)
    kept = slice(max(0, len(values) - steps.recipe.rank), None)
    kept_PP = (vectors[:, kept] * values[kept]) @ vectors[:, kept].mT
    diagonal_P = (1 - BETA) * before["diagonal"] + BETA * PRIOR + (low_PP - kept_PP).diagonal()
    precision_PP = kept_PP + diagonal_P.diag()
    momentum_P = MOMENTUM * before["momentum"] + (1 - MOMENTUM) * weight * rows_XP.sum(dim=0)
    untruncated_P = (1 - BETA) * (before["factor"].square().sum(dim=1) + before["diagonal"])
    return {
        "precision": precision_PP,
        "mean": before["mean"] + ALPHA * torch.linalg.solve(precision_PP, momentum_P - PRIOR * before["mean"]),
        "momentum": momentum_P,
        "diagonal": untruncated_P + BETA * (weight * rows_XP.square().sum(dim=0) + PRIOR),
    }


CUTS: dict[str, dict[str, Any]] = {
    "one slice": {"num_slices": 1, "rank": 3},
    "three slices": {"num_slices": 3, "rank": 3},
    "one pass, one column": {"num_slices": 1, "rank": 1, "draws": 1, "micro_batch": 32, "tile_weights": 100_000},
    "more slices than tiles": {"num_slices": 3, "rank": 3, "tile_weights": 100_000},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_steps_are_those_of_dense_matrices(case, cut):
    steps = steps_of(case, **CUTS[cut])
    num_slices = CUTS[cut]["num_slices"]
    gang, state = LoneGang(num_slices), dict(steps.init())
    for number in range(3):
        expected = dense_step(case, steps, dense(steps, state), number)
        state, progress = steps.step(state, number, gang)
        after = dense(steps, state)
        after["precision"] = after["factor"] @ after["factor"].mT + after["diagonal"].diag()
        rounds = "llama" in case.name  # it rounds to float32 inside
        kept = after["precision"].diagonal()
        torch.testing.assert_close(kept, expected["diagonal"], rtol=1e-5 if rounds else 1e-12, atol=0.0)
        for name in ("precision", "mean", "momentum"):
            assert_near(after[name], expected[name], 1e-5 if rounds else 1e-11)
        assert progress.figures["diagonal_added"] < 1e-12


@pytest.mark.parametrize("name", ["mlp", "regression"])
def test_with_as_many_columns_as_weights_the_precision_is_that_of_full_variational_inference(name):
    case = case_named(name)
    steps = steps_of(case, 1, rank=case.num_weights + 2)
    state = dict(steps.init())
    before = dense(steps, state)
    full_PP = before["factor"] @ before["factor"].mT + before["diagonal"].diag()
    for number in range(3):
        before = dense(steps, state)
        rows_XP, weight = dense_rows(case, steps, before, number)
        full_PP = (1 - BETA) * full_PP + BETA * (
            weight * rows_XP.mT @ rows_XP + PRIOR * torch.eye(case.num_weights).double()
        )
        state, _ = steps.step(state, number, LoneGang(1))
        after = dense(steps, state)
        made_PP = after["factor"] @ after["factor"].mT + after["diagonal"].diag()
        torch.testing.assert_close(made_PP, full_PP, rtol=0.0, atol=1e-10 * float(full_PP.abs().max()))


@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_random_columns_keep_the_diagonal_and_come_close_to_the_best_truncation(case):
    exact, random = (steps_of(case, 2, rank=3, truncation=kind) for kind in ("exact", "randomised"))
    state = dict(exact.init())
    for number in range(2):
        copies = [{name: tensor.clone() for name, tensor in state.items()} for _ in range(2)]
        best, _ = exact.step(copies[0], number, LoneGang(2))
        state, progress = random.step(copies[1], number, LoneGang(2))
        best_of, near = dense(exact, best), dense(random, state)
        kept = [float(each["factor"].square().sum()) for each in (near, best_of)]
        assert 0.9 * kept[1] <= kept[0] <= kept[1] * (1 + 1e-6)
        diagonals = [each["factor"].square().sum(dim=1) + each["diagonal"] for each in (near, best_of)]
        torch.testing.assert_close(*diagonals, rtol=1e-5 if "llama" in case.name else 1e-10, atol=0.0)
        assert progress.figures["truncation_residual"] < 0.2
        state = dict(best)


@pytest.mark.parametrize(("start", "least", "rtol"), [("ggn_nystrom", 0.85, 0.15), ("ella", 0.5, 1e-8)])
def test_a_fit_that_starts_from_a_ggn_starts_with_its_leading_part(start, least, rtol):
    case = case_named("mlp")
    method = Slang(rank=4, start=start, temperature=2.0)
    made = stages_in_memory(_Before(method), case.module(), case.items, case.likelihood, tile_weights=48, memory_gb=0.1)
    request = request_from_objects(case.module(), {"train": case.items}, method, case.likelihood, tile_weights=48)
    bench = MemoryBench(request.bench("", {}), made)
    declared = method.stages(case.likelihood, Bench(request.bench("", {})))["variational"]
    steps = declared.recipe.on(bench)
    begun = dense(steps, steps.init())
    ggn_PP = dense_ggn(case) / method.temperature
    share = float(begun["factor"].square().sum() / torch.linalg.eigvalsh(ggn_PP)[-4:].sum())
    assert least < share < 1.001, share  # of the leading part, as far as it was found
    inside_P4 = torch.linalg.qr(begun["factor"]).Q
    begun_44 = inside_P4.mT @ begun["factor"] @ begun["factor"].mT @ inside_P4
    assert_near(begun_44, inside_P4.mT @ ggn_PP @ inside_P4, rtol)
    whitened_PL = begun["factor"] * begun["diagonal"].rsqrt()[:, None]
    torch.testing.assert_close(steps.init()["core/gram"], whitened_PL.mT @ whitened_PL)


@dataclass(frozen=True)
class _Before:
    """The stages that a fit starts from, alone."""

    method: Slang

    def __getattr__(self, name):
        return getattr(self.method, name)

    def stages(self, likelihood, outline):
        return {
            name: each
            for name, each in self.method.stages(likelihood, outline).items()
            if name != "variational" and not name.startswith("draws-")
        }


def test_the_bound_is_told_only_of_epochs_that_had_the_likelihood_itself():
    case = case_named("regression")
    steps = steps_of(case, 1, rank=2, noise_ramp=0.5)
    steps = replace(steps.recipe, epochs=6).on(steps.bench)
    state, told = dict(steps.init()), []
    for number in range(steps.num_steps):
        state, progress = steps.step(state, number, LoneGang(1))
        if "divergence" in progress.figures:
            told.append("elbo" in progress.figures)
    assert told == [False, False, False, True, True, True]
