"""What a variational fit is counted to take, against a run of the same plan."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from afterfit import Slang, VariationalDropout
from afterfit.engine import open_engine
from afterfit.methods.variational_dropout import NoisyTraining
from afterfit.network.likelihoods import Categorical
from afterfit.network.perceptron import perceptron
from afterfit.plan.cost import costs
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import request_from_objects
from afterfit.store.directory import open_store


def requested(network: torch.nn.Module, shape: tuple[int, ...], **choices: Any) -> FitRequest:
    items = [{"pixel_values": torch.randn(*shape), "label": number % 4} for number in range(64)]
    method = Slang(rank=4, draws_per_step=2, batch_size=16, epochs=2, num_draws=5, **choices)
    return request_from_objects(network.eval(), {"train": items}, method, Categorical())


def conv() -> torch.nn.Module:
    class Named(torch.nn.Sequential):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return super().forward(pixel_values)

    layers = (torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1024, 4))
    return Named(*layers)


CASES = {
    "factors": lambda **choices: requested(perceptron([60, 80, 4]), (60,), **choices),
    "rows": lambda **choices: requested(conv(), (1, 8, 8), **choices),
}


@pytest.mark.parametrize("truncation", ["exact", "randomised"])
@pytest.mark.parametrize("case", CASES)
def test_work_and_bytes_are_those_of_a_run(tmp_path, case, truncation):
    asked = CASES[case](truncation=truncation)
    plan, store = posterior_plan(asked), open_store(str(tmp_path))
    counted = costs(plan, asked)
    with open_engine("inprocess", store) as engine:
        execute(plan[:1], asked, engine, store)
        with FlopCounterMode(display=False) as counter:
            made = execute(plan[:2], asked, engine, store)["variational"].artifact
        ran = execute(plan, asked, engine, store)
    variational, draws = counted["variational"], counted["draws-00000"]
    assert variational is not None
    assert draws is not None
    eigenproblems = 8 * (2 * 4 / 3) * 36.0**3 if truncation == "exact" else 0.0  # which the counter does not see
    assert 0.4 < (variational.flops - eigenproblems) / counter.get_total_flops() < 2.5
    # The mean is stored as weights; files have headers and padding.
    assert variational.stored_bytes <= made.num_bytes <= 1.2 * variational.stored_bytes + 2 * 4096
    assert draws.stored_bytes <= ran["draws-00000"].artifact.num_bytes <= 1.1 * draws.stored_bytes + 4096


def test_explicit_rows_of_a_whole_step_are_counted_and_no_budget_bounds_them():
    asked = CASES["rows"]()
    counted = costs(posterior_plan(asked), asked)["variational"]
    assert counted is not None
    assert counted.memory_gb > 32 * 16 * 9 * 4 / 1e9  # of the convolution
    assert not counted.is_budgeted


@pytest.mark.parametrize("choices", [{}, {"noise": "correlated", "sharing": "unit"}], ids=["independent", "correlated"])
@pytest.mark.parametrize("case", CASES)
def test_work_and_bytes_of_noisy_training_are_those_of_a_run(tmp_path, case, choices):
    method = VariationalDropout(training=NoisyTraining(epochs=2, batch_size=16), num_draws=5, **choices)
    asked = replace(CASES[case](), method=method)
    plan, store = posterior_plan(asked), open_store(str(tmp_path))
    counted = costs(plan, asked)
    with open_engine("inprocess", store) as engine:
        execute(plan[:1], asked, engine, store)
        with FlopCounterMode(display=False) as counter:
            made = execute(plan[:2], asked, engine, store)["variational"].artifact
        ran = execute(plan, asked, engine, store)
    variational, draws = counted["variational"], counted["draws-00000"]
    assert variational is not None
    assert draws is not None
    assert 0.4 < variational.flops / counter.get_total_flops() < 2.5
    assert variational.stored_bytes <= made.num_bytes <= 1.2 * variational.stored_bytes + 2 * 4096
    assert draws.stored_bytes <= ran["draws-00000"].artifact.num_bytes <= 1.1 * draws.stored_bytes + 4096


def test_weights_that_are_drawn_for_every_example_are_counted():
    training = NoisyTraining(epochs=2, batch_size=16)
    asked, num_weights = [], 60 * 80 + 80 + 80 * 4 + 4
    for estimator in ("local", "per_example"):
        method = VariationalDropout(training=training, estimator=estimator, num_draws=5)
        one = replace(CASES["factors"](), method=method)
        counted = costs(posterior_plan(one), one)["variational"]
        assert counted is not None
        asked.append(counted.memory_gb)
    assert asked[1] - asked[0] == pytest.approx(2 * 16 * num_weights * 4 / 1e9)
