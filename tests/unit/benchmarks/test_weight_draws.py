"""What the null-space benchmark measures of draws."""

import math

import pytest
import torch

from afterfit.layout import Layout
from afterfit.methods.projection.draws import column_norms
from weight_draws import Linear, isotropic, largest_scale, scores, slope


@pytest.mark.parametrize("power", [1.0, 1.2, 2.0, 4.0])
@pytest.mark.parametrize("start", [1e-3, 0.4, 70.0])
def test_the_largest_scale_is_where_a_power_law_meets_the_limit(power, start):
    tried = []

    def change(scale):
        tried.append(scale)
        return 3 * scale**power

    found = largest_scale(change, 0.1, start)
    right = (0.1 / 3) ** (1 / power)
    assert change(found) <= 0.1
    assert right / 1.02 <= found <= right
    assert len(tried) <= 16


def test_the_largest_scale_is_found_where_losses_are_infinite_beyond_some_scale():
    found = largest_scale(lambda scale: scale if scale < 0.05 else math.inf, 0.1, 1.0)
    assert 0.05 / 1.02 <= found < 0.05


def test_a_change_that_never_reaches_the_limit_is_an_error():
    with pytest.raises(ValueError, match="No scale"):
        largest_scale(lambda _: 0.0, 0.1, 1.0)


def test_the_slope_of_a_power_is_the_power():
    assert slope([1, 2, 4], [5.0, 5 * 2**1.5, 5 * 4**1.5]) == pytest.approx(1.5)


def test_noise_is_as_long_as_the_root_of_the_number_of_weights():
    layout = Layout.of(torch.nn.Linear(100, 100), tile_weights=3000)
    drawn = isotropic(layout, 4)
    assert len(drawn) > 1
    assert column_norms(drawn) == pytest.approx([math.sqrt(10100)] * 4, rel=0.05)  # seven standard deviations


def test_draws_that_move_only_other_data_tell_them_apart_and_leave_the_predictions():
    mean_NC = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    inside = Linear(mean_NC, torch.zeros(2, 2, 3), torch.tensor([0, 1]))
    outside = Linear(mean_NC, torch.tensor([[[1.0, -1.0, 0.5], [0.0, 0.0, 0.0]]]).expand(2, 2, 3), None)
    made = scores(inside, outside, 0.5)
    nll = -(mean_NC.double().log_softmax(dim=1)[[0, 1], [0, 1]]).mean()
    assert made["ood_auroc"] == 1.0
    assert made["nll"] == pytest.approx(float(nll))
    assert inside.accuracy(0.5) == 1.0
