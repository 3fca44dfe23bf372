"""The noise of a network: where it is, what it says of itself, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from afterfit.engine.gang import LoneGang
from afterfit.errors import NetworkError
from afterfit.methods.dropout.noise import MARK
from afterfit.methods.dropout.pruning import fitted_noise
from afterfit.methods.dropout.sites import sites_of
from afterfit.methods.variational_dropout import NoisyTraining, VariationalDropout
from afterfit.network.functional import Network
from cases import case_named
from memory_engine import stages_in_memory
from noisy_fits import TYPE_A, fit_of, fit_on, items_of


class Again(nn.Module):
    """A layer that runs again in the backward pass, which no attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, data: Tensor) -> Tensor:
        made: Any = checkpoint(lambda given: self.inner(given).tanh(), data, use_reentrant=False)
        return self.head(made)


@pytest.mark.parametrize("choices", [{}, TYPE_A], ids=["independent", "correlated"])
def test_layers_that_run_again_without_their_noise_are_refused(choices):
    torch.manual_seed(0)
    fit = fit_on(Again().eval().double(), items_of(5, 3), **choices)
    with pytest.raises(NetworkError, match="without checkpointing"):
        fit.step(fit.init(), 0, LoneGang(1))


class Autoencoder(nn.Module):
    """One matrix there and back, and a table that is looked up by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.table, self.head = nn.Linear(5, 7), nn.Linear(7, 4), nn.Linear(5, 3)

    def forward(self, data: Tensor) -> Tensor:
        hidden = self.tied(data).tanh() + self.table.weight[torch.zeros(1, dtype=torch.long)]
        hidden = hidden + (self.table(hidden) @ self.table.weight)
        return self.head(functional.linear(hidden, self.tied.weight.t()).to(self.head.weight))


def test_weights_that_enter_something_else_too_have_no_noise():
    torch.manual_seed(0)
    network = Network(Autoencoder().eval().double())
    sites = sites_of(network, {"data": torch.randn(4, 5).double()}, ("*",))
    assert list(sites.noisy) == ["head.weight"]
    assert sites.still == ["tied.weight", "table.weight"]


@pytest.mark.parametrize("choices", [{}, {"kl": "proper_prior"}, TYPE_A], ids=["molchanov", "proper", "correlated"])
def test_a_layer_that_starts_at_zero_has_noise_and_its_rates_move(choices):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval().double()
    nn.init.zeros_(module[2].weight)
    items = [{"input": item["data"], "label": item["label"]} for item in items_of(5, 3)]
    fit = fit_on(module, items, **choices)
    (fitted,) = (one for name, one in fit.noise.fitted(fit.leaves(fit.init())).items() if name == "2.weight")
    if not choices or "kl" in choices:
        expected = torch.full((3, 7), 0.05 / 7).double()
        torch.testing.assert_close(fitted.noisy.variance(fitted.mean, fitted.free).detach(), expected)
        state, _ = fit.step(fit.init(), 0, LoneGang(1))
        assert float(state["first_moment_float64/2.weight" + MARK].abs().min()) > 0


def test_a_proper_prior_prices_every_variance_as_it_is():
    torch.manual_seed(0)
    fit = fit_of(case_named("mlp"), kl="proper_prior", prior_precision=2.0)
    leaves = fit.leaves(fit.init())
    with torch.no_grad():
        leaves["0.weight"][0] = torch.tensor(1e-9)  # far less than its deviation
    total = torch.zeros(()).double()
    for name in fit.noise.blocks:
        prior = torch.distributions.Normal(torch.zeros(()).double(), 1 / math.sqrt(2.0))
        posterior = torch.distributions.Normal(leaves[name].detach(), (leaves[name + MARK] / 2).exp().detach())
        total = total + torch.distributions.kl_divergence(posterior, prior).sum()
    torch.testing.assert_close(fit.noise.divergence(leaves).detach(), total)
    (gradient,) = torch.autograd.grad(fit.noise.divergence(leaves), [leaves["0.weight"]])
    torch.testing.assert_close(gradient, 2.0 * leaves["0.weight"].detach())


def test_facts_are_those_of_what_was_fitted():
    case = case_named("mlp")
    training = NoisyTraining(epochs=2, batch_size=6, train="3.*", learning_rate=0.3)
    method = VariationalDropout(training=training, weights=("3.weight",), num_draws=2)
    fitted = stages_in_memory(method, case.module(), case.items, case.likelihood)["variational"]
    (one,) = fitted_noise(fitted).values()  # type: ignore[arg-type]
    variance = one.free.exp()
    assert fitted.facts["divergence"] == pytest.approx(float(one.noisy.divergence(one.mean, one.free)))
    assert fitted.facts["log_det_precision"] == pytest.approx(-float(variance.log().sum()))
    count = variance.numel()
    entropy = (count * (1 + math.log(2 * math.pi)) + float(variance.log().sum())) / 2
    assert fitted.facts["entropy"] == pytest.approx(entropy)
    pruned = int((variance / one.mean.square() >= math.exp(3)).sum())
    assert 0 < pruned < count
    assert fitted.facts["sparsity"] == pytest.approx(pruned / count)
    assert fitted.facts["compression"] == pytest.approx(case.num_weights / (case.num_weights - pruned))


def test_noise_at_several_positions_is_told_with_the_bound():
    (note,) = fit_of(case_named("vit"), weights=("*attention*",)).noise.notes()
    assert "meet an example at several positions" in note
    assert not list(fit_of(case_named("vit"), weights=("*attention*",), **TYPE_A).noise.notes())
    assert not list(fit_of(case_named("mlp")).noise.notes())
