"""What refits hold of each column is what units are cut by: not more, and not so much less that memory lies idle."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afterfit import ImplicitHessian
from afterfit.algebra import Cursor, State
from afterfit.methods.queries.chosen import gradients_of, places_of
from afterfit.methods.queries.covariance import HELD_TENSORS
from afterfit.methods.queries.preconditioner import Preconditioner
from afterfit.methods.queries.refits import influence
from afterfit.methods.queries.response import Kind, response_on
from afterfit.methods.queries.solving import Solver
from afterfit.network.likelihoods import likelihood_named
from afterfit.plan.bench import Bench
from afterfit.plan.resolve import request_from_objects
from live_bytes import LiveBytes

LAMBDA_SD = 1e-3


class Saving(Cursor):
    """One that takes every state, and keeps none."""

    def resume(self) -> tuple[int, State] | None:
        return None

    def reached(self, position: int, total: int, state: State) -> None:
        assert all(isinstance(value, Tensor) for value in state.values())


def solver_of(kind: Kind) -> Solver:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 3)).float()
    data = [{"input": torch.randn(16, dtype=torch.float32), "label": number % 3} for number in range(8)]
    likelihood = likelihood_named("categorical", None)
    request = request_from_objects(
        module.eval(), {"train": data}, ImplicitHessian(), likelihood, tile_weights=6_000, micro_batch=4
    )
    bench: Any = Bench(request.bench("", {}))
    basis = torch.linalg.qr(torch.randn(bench.layout.num_weights, 4, dtype=torch.float32)).Q
    tiles = {tile.name: basis[tile.offset : tile.offset + tile.size].clone() for tile in bench.layout}
    preconditioner = Preconditioner(tiles, torch.tensor([4.0, 3, 2, 1], dtype=torch.float64), 1.0, 0.0)
    response = response_on(bench, likelihood, kind)
    return Solver(bench=bench, response=response, preconditioner=preconditioner, tolerance=1e-3, max_passes=8)


@pytest.mark.parametrize("kind", ["ggn", "linearised", "hessian", "exact"])
def test_columns_take_what_is_counted(kind):
    """Of the exact network some columns go astray, and begin again."""
    solver = solver_of(kind)
    batch = solver.bench.data("train").batch(range(4))
    with LiveBytes(large=0) as live:
        columns, _ = gradients_of(solver, batch, places_of(solver, batch, None))
        found = influence(solver, columns, "two", LAMBDA_SD, Saving())
    assert found.passes > 2
    num_columns = 12 * (1 if solver.is_linear else 2)
    number = 4 if kind in ("ggn", "linearised") else 8
    held = live.peak / (number * solver.bench.layout.num_weights * num_columns)
    print(f"{kind}: {held:.1f} tensors a column")
    assert 0.7 * HELD_TENSORS <= held <= HELD_TENSORS
