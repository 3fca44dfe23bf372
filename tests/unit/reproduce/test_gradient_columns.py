"""Gradients kept as factors are the gradients that automatic differentiation gives."""

import pytest
import torch
from torch import Tensor

from gradient_columns import Linear, Network, OneHidden

NETWORKS = [Linear(5), OneHidden(4, 3)]
R, S, M, L = 2, 3, 4, 2


def _plain(network: Network, weights_P: Tensor, inputs_MI: Tensor) -> Tensor:
    """Outputs (M,), written down once more."""
    if isinstance(network, Linear):
        return inputs_MI @ weights_P
    assert isinstance(network, OneHidden)
    first, last = weights_P.split([network.num_hidden * network.num_inputs, network.num_hidden + 1])
    hidden_MH = torch.relu(inputs_MI @ first.view(network.num_hidden, network.num_inputs).T)
    return hidden_MH @ last[:-1] + last[-1]


def _problem(network: Network, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    draws_RPS = torch.randn(R, network.num_weights, S, dtype=torch.float64)
    inputs_RMI = torch.randn(R, M, network.num_inputs, dtype=torch.float64)
    inputs_RMI[..., -1] = 1
    return draws_RPS, inputs_RMI, torch.randn(R, S, M, dtype=torch.float64)


def _explicit(network: Network, draws_RPS: Tensor, inputs_RMI: Tensor, slopes_RSM: Tensor) -> Tensor:
    """G (R, P, S M), draws first."""
    whole = []
    for draws_PS, inputs_MI, slopes_SM in zip(draws_RPS, inputs_RMI, slopes_RSM, strict=True):
        rows_SMP = torch.stack(
            [
                torch.func.jacrev(lambda weights, of=inputs_MI: _plain(network, weights, of))(weights_P)
                for weights_P in draws_PS.mT
            ]
        )
        whole.append((rows_SMP * slopes_SM[..., None]).flatten(0, 1).mT)
    return torch.stack(whole)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_outputs_and_every_product_are_those_of_explicit_gradients(network: Network, seed: int) -> None:
    draws_RPS, inputs_RMI, slopes_RSM = _problem(network, seed)
    explicit_RPX = _explicit(network, draws_RPS, inputs_RMI, slopes_RSM)

    passed = network.passed(draws_RPS, inputs_RMI)
    columns = passed.columns(slopes_RSM)
    num_columns = network.columns_per_batch(S, M)
    factor_RPL = torch.randn(R, network.num_weights, L, dtype=torch.float64)
    made_RPX = columns.times(torch.eye(num_columns, dtype=torch.float64).expand(R, -1, -1))
    weights_RXL = torch.randn(R, num_columns, L, dtype=torch.float64)

    for replica in range(R):
        for draw in range(S):
            expected_M = _plain(network, draws_RPS[replica, :, draw], inputs_RMI[replica])
            torch.testing.assert_close(passed.outputs_RSM[replica, draw], expected_M)
    torch.testing.assert_close(columns.square(), explicit_RPX @ explicit_RPX.mT)
    torch.testing.assert_close(columns.squares(), explicit_RPX.square().sum(dim=2))
    torch.testing.assert_close(columns.total(), explicit_RPX.sum(dim=2))
    torch.testing.assert_close(made_RPX @ made_RPX.mT, explicit_RPX @ explicit_RPX.mT)
    torch.testing.assert_close(columns.gram(), made_RPX.mT @ made_RPX)
    torch.testing.assert_close(columns.cross(factor_RPL), factor_RPL.mT @ made_RPX)
    torch.testing.assert_close(columns.times(weights_RXL), made_RPX @ weights_RXL)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_biases_are_the_weights_of_the_input_that_is_one(network: Network) -> None:
    weights_P = torch.where(network.is_bias(), 0.0, torch.randn(network.num_weights))

    assert _plain(network, weights_P, torch.eye(network.num_inputs)[-1:]) == 0
    assert int(network.is_bias().sum()) == (1 if isinstance(network, Linear) else 4)
