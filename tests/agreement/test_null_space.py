"""Null-space draws against a singular value decomposition of the dense Jacobian, in float64, on every tiny network."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from afterfit.methods.null_space import NullSpace
from afterfit.methods.projection.draws import noise_tiles
from afterfit.methods.projection.protected import layers
from afterfit.network.likelihoods import Gaussian
from cases import NETWORK_CASES, NetworkCase, case_named, dense_outputs, dense_training_rows
from memory_engine import Made, stages_in_memory

NUM_DRAWS = 3
EVERY_CASE = pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
ITERATIVE = {
    "cg": {"solver": "cg", "preconditioner": "none"},
    "cg_sweep": {"solver": "cg", "preconditioner": "sweep"},
    "cg_cholesky": {"solver": "cg", "preconditioner": "cholesky"},
    "cg_nystrom": {"solver": "cg", "preconditioner": "nystrom", "global_basis": 12},
}


def made(case: NetworkCase, **choices: object) -> Mapping[str, Made]:
    limit = 1e-9 if case.rtol <= 1e-8 else 1e-6
    asked = {"num_draws": NUM_DRAWS, "block_size": 4, "scale": 0.01, "tolerance": limit, "max_passes": 2000, **choices}
    method = NullSpace.model_validate(asked)
    tiles = case.network().layout.tile_weights
    cuts = {"output": case.output, "micro_batch": 4, "num_shards": 2, "tile_weights": tiles}
    return stages_in_memory(method, case.module(), case.items, case.likelihood, **cuts)


def draws(stages: Mapping[str, Made]) -> Tensor:
    """(P, S)."""
    return stages["draws-00000"].tensor("draws")


@cache
def noise(case: NetworkCase) -> Tensor:
    class Outline:
        layout = case.network().layout
        state_bytes = 8

    return torch.cat(list(noise_tiles(0, Outline(), range(NUM_DRAWS)).values()))  # type: ignore[arg-type]


def on_kernel(rows_RP: Tensor, columns_Pk: Tensor) -> Tensor:
    """The projection on the kernel of the rows, each first brought to length one, by an SVD."""
    lengths_R1 = rows_RP.norm(dim=1, keepdim=True)
    units_RP = rows_RP[lengths_R1[:, 0] > 0] / lengths_R1[lengths_R1[:, 0] > 0]
    _, values, right = torch.linalg.svd(units_RP, full_matrices=False)
    basis_KP = right[values > 1e-6 * values[0]]
    return columns_Pk - basis_KP.T @ (basis_KP @ columns_Pk)


def rows_of(case: NetworkCase) -> Tensor:
    return dense_training_rows(case).flatten(0, 1)


def loss_rows(case: NetworkCase) -> Tensor:
    outputs_NC = dense_outputs(case.network(), case.examples.batch(range(case.num_examples)))
    slopes_NC = case.likelihood.gradient(outputs_NC, case.examples.targets())
    return torch.einsum("nc,ncp->np", slopes_NC, dense_training_rows(case))


def tolerance(case: NetworkCase, asked: float) -> float:
    """As asked; a network that rounds to float32 inside has rows that differ by 1e-7, and small singular values."""
    return asked if case.rtol <= 1e-8 else 1e-3


def assert_same_draws(actual: Tensor, expected: Tensor, limit: float) -> None:
    assert float((actual - expected).norm(dim=0).max()) <= limit * float(expected.norm(dim=0).min())


@EVERY_CASE
@pytest.mark.parametrize("kernel", ["predictive", "loss"])
def test_exact_draws_are_those_of_the_svd(case, kernel):
    stages = made(case, solver="exact", kernel=kernel)
    rows = rows_of(case) if kernel == "predictive" else loss_rows(case)
    assert_same_draws(draws(stages), on_kernel(rows, noise(case)), tolerance(case, 1e-8))
    assert stages["draws-00000"].facts["rank"] == int(torch.linalg.matrix_rank(rows / rows.norm(dim=1, keepdim=True)))


@EVERY_CASE
def test_layers_alone_have_kernels_inside_the_whole_one(case):
    stages = made(case, solver="exact", kernel="per_layer")
    layout, numbers = case.network().layout, layers(case.network().layout)
    of_weight = torch.cat([torch.full((block.size,), numbers[block.name]) for block in layout.blocks])
    expected = noise(case).clone()
    for layer in range(max(numbers.values()) + 1):
        inside = of_weight == layer
        expected[inside] = on_kernel(rows_of(case)[:, inside], expected[inside])
    if case.rtol <= 1e-8:  # a layer's rows have singular values below the others' rounding
        assert_same_draws(draws(stages), expected, 1e-8)
    moved = rows_of(case) @ draws(stages)
    limit = tolerance(case, 1e-9) if case.rtol <= 1e-8 else 1e-5
    assert float(moved.abs().max()) <= limit * float(rows_of(case).norm(dim=1).max() * draws(stages).norm())


@EVERY_CASE
def test_the_loss_kernel_contains_the_predictive_one(case):
    predictive = draws(made(case, solver="exact"))
    again = on_kernel(loss_rows(case), predictive)
    assert_same_draws(again, predictive, tolerance(case, 1e-8))


@EVERY_CASE
@pytest.mark.parametrize("solver", ITERATIVE)
def test_conjugate_gradients_reach_the_same_draws(case, solver):
    stages = made(case, **ITERATIVE[solver])
    assert stages["draws-00000"].facts["stop"] == "converged"
    assert_same_draws(draws(stages), on_kernel(rows_of(case), noise(case)), tolerance(case, 1e-6))


@EVERY_CASE
@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_projecting_again_changes_nothing(case, solver):
    once = draws(made(case, solver=solver))
    assert_same_draws(on_kernel(rows_of(case), once), once, tolerance(case, 1e-6 if solver == "cg" else 1e-8))


class Linear(nn.Module):
    """Its Jacobian is its input."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def linear_case(values: Tensor, size: int) -> tuple[nn.Module, list[dict[str, Tensor]], Tensor]:
    """A network whose rows have these singular values, before they are brought to length one."""
    generator = torch.Generator().manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64))
    rows = left @ torch.diag(values) @ right.T
    torch.manual_seed(0)
    module = Linear(size).double().eval().requires_grad_(False)
    items = [{"x": row, "target": torch.zeros(1, dtype=torch.float64)} for row in rows]
    return module, items, rows


def solved(module: nn.Module, items: list, **choices: object) -> Mapping[str, Made]:
    asked = {"num_draws": 4, "scale": 0.01, "block_size": 20, **choices}
    return stages_in_memory(NullSpace.model_validate(asked), module, items, Gaussian(1.0), micro_batch=20, num_shards=1)


@pytest.mark.parametrize("values", [torch.ones(30), torch.linspace(1.0, 0.05, 30)])
def test_all_solvers_agree_where_singular_values_are_of_like_size(values):
    module, items, _ = linear_case(values.double(), 90)
    limits = {"tolerance": 1e-9, "max_passes": 5000, "block_size": 5}
    expected = draws(solved(module, items, solver="exact"))
    for choices in (*ITERATIVE.values(), {"solver": "alternating"}):
        assert_same_draws(draws(solved(module, items, **limits, **choices)), expected, 1e-6)


def test_on_a_power_law_alternating_projections_stall_and_conjugate_gradients_do_not():
    values = torch.arange(1, 201, dtype=torch.float64) ** -0.75
    module, items, rows = linear_case(values, 600)
    units = rows / rows.norm(dim=1, keepdim=True)

    def residual(choices: dict[str, object]) -> float:
        stages = solved(module, items, tolerance=1e-6, max_passes=150, **choices)
        found = draws(stages)
        true = float(((units @ found).abs().amax(dim=0) / found.norm(dim=0)).max())
        assert stages["certificate-00000"].facts["residual"] == pytest.approx(true, rel=1e-3, abs=1e-15)
        return true

    assert residual({"solver": "alternating"}) > 1e-4
    assert residual({"solver": "cg", "preconditioner": "none"}) <= 1e-6


def test_duplicated_and_vanishing_rows_change_neither_draws_nor_solvers():
    module, items, _ = linear_case(torch.linspace(1.0, 0.3, 24, dtype=torch.float64), 80)
    zero = {"x": torch.zeros(80, dtype=torch.float64), "target": torch.zeros(1, dtype=torch.float64)}
    limits = {"tolerance": 1e-9, "max_passes": 3000, "block_size": 5}
    expected = draws(solved(module, items, solver="exact"))
    for choices in ({"solver": "exact"}, *ITERATIVE.values(), {"solver": "alternating"}):
        stages = solved(module, [*items, items[0], items[7], zero, items[0]], **limits, **choices)
        assert_same_draws(draws(stages), expected, 1e-6)
    stages = solved(module, [*items, items[0], zero], solver="exact")
    assert stages["draws-00000"].facts["rank"] == 24


def test_an_example_that_is_fitted_all_but_perfectly_is_protected_like_others():
    case = replace(case_named("mlp"))
    module = case.module()
    last = [weight for name, weight in module.named_parameters()][-2:]
    with torch.no_grad():
        for weight in last:
            weight.mul_(200.0)
    method = NullSpace(kernel="loss", solver="exact", num_draws=2, scale=0.01)
    stages = stages_in_memory(method, module, case.items, case.likelihood, micro_batch=4, num_shards=2)
    certificate = stages["certificate-00000"].facts
    assert certificate["residual"] <= 1e-10
    assert certificate["isotropic"] >= 1e-3
