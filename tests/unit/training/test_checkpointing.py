"""Layers that run again in the backward pass."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from afterfit.errors import NetworkError
from afterfit.training.checkpointing import refuse_reentrant


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool):
        super().__init__()
        self.first, self.last, self.use_reentrant = nn.Linear(3, 4), nn.Linear(4, 2), use_reentrant

    def forward(self, data: Tensor) -> Tensor:
        made = checkpoint(self.first, data, use_reentrant=self.use_reentrant)
        assert isinstance(made, Tensor)
        return self.last(made.tanh())


def loss_of(network: nn.Module) -> Tensor:
    return network(torch.randn(5, 3, requires_grad=True)).square().sum()


def test_layers_whose_weights_would_get_no_gradient_are_refused():
    network = Checkpointed(use_reentrant=True)
    loss = loss_of(network)
    assert torch.autograd.grad(loss, [network.first.weight], allow_unused=True) == (None,)
    with pytest.raises(NetworkError, match="use_reentrant=False"):
        refuse_reentrant(loss)


def test_other_layers_that_run_again_are_not():
    network = Checkpointed(use_reentrant=False)
    loss = loss_of(network)
    refuse_reentrant(loss)
    (gradient,) = torch.autograd.grad(loss, [network.first.weight])
    assert float(gradient.abs().max()) > 0
