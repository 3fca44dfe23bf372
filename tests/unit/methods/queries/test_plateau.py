"""Where lambda is taken from."""

import pytest
import torch

from afterfit import HessianFree
from afterfit.errors import ConfigError
from afterfit.methods.queries.plateau import Tried, widest


def test_the_widest_plateau_is_found_and_its_middle_taken():
    grid = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    flat = torch.tensor([[1.3, 2.6], [1.001, 2.0], [1.0, 2.0], [0.999, 2.01], [0.5, 1.0]], dtype=torch.float64)
    every = torch.ones(5, dtype=torch.bool)
    level = widest(grid, flat, every)
    assert level.decades == pytest.approx(2)
    assert level.lambda_sd == pytest.approx(1e-2)
    assert level.spread == pytest.approx(5e-3, rel=0.01)
    steep = torch.tensor([[1.0], [2.0], [3.0], [9.0], [27.0]])
    assert widest(grid, steep, every).spread > 0.1
    some = torch.tensor([True, True, True, False, False])  # the other two left the valley
    assert widest(grid, flat, some).decades == pytest.approx(1)
    ended = torch.tensor([1e-3, 1e-3, 1e-3, 9.0, 9.0])
    assert Tried(flat, ended, some).is_positive
    assert not Tried(flat, ended, torch.tensor([True, False, True, True, True])).is_positive
    assert Tried(flat, ended, every).is_usable_g(3e-3).tolist() == [True, True, True, False, False]
    assert Tried(flat, ended, some).is_usable_g(1e-9).tolist() == some.tolist()  # none went to its end


def test_lambdas_out_of_order_are_refused():
    with pytest.raises(ConfigError, match="not ascending"):
        HessianFree(lambda_sd=(1e-2, 1e-3)).check(40, 2)
