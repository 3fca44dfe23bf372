"""Variational dropout: what it refuses, where it puts noise, its gradients, and its draws."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from afterfit.engine.gang import LoneGang
from afterfit.errors import ConfigError, NetworkError
from afterfit.methods.dropout.local import NoisyProducts
from afterfit.methods.dropout.noise import MARK
from afterfit.methods.dropout.pruning import pruned_state, with_all_names
from afterfit.methods.dropout.sites import sites_of
from afterfit.methods.dropout.weights import Site
from afterfit.methods.variational_dropout import NoisyTraining, VariationalDropout
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Categorical, Gaussian
from afterfit.network.noise import named_noise
from afterfit.training.point_estimate import targets_of, trained_state
from cases import NETWORK_CASES, case_named
from memory_engine import stages_in_memory
from noisy_fits import TYPE_A, fit_of, fit_on


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"noise": "correlated"}, "set `sharing` to unit or layer"),
        ({**TYPE_A, "parametrisation": "additive"}, "set `parametrisation` to multiplicative"),
        ({**TYPE_A, "kl": "proper_prior"}, "no density of their own; set `kl`"),
        ({"noise": "bernoulli", "sharing": "layer"}, "set `learn: false`"),
        ({"kl": "kingma", "rate": 2.0, "parametrisation": "multiplicative"}, "holds for rates up to 1"),
        ({"kl": "kingma"}, "set `parametrisation` to multiplicative"),
        ({"rate": 3000.0}, "weights are drowned"),
    ],
)
def test_choices_that_mean_nothing_together_are_refused(choices, says):
    with pytest.raises(ConfigError, match=says):
        VariationalDropout(**choices).check(40, 2)


def test_what_cannot_be_fitted_is_refused_with_the_remedy():
    case = case_named("mlp")
    with pytest.raises(ConfigError, match=r"'hed\.\*' in `method\.weights` chooses no weight"):
        fit_of(case, weights=("hed.*",))
    regression = case_named("regression")
    with pytest.raises(ConfigError, match=r"set `likelihood\.noise_variance`"):
        VariationalDropout().stages(Gaussian(), fit_of(regression).bench)
    with pytest.raises(ConfigError, match=r"'0\.weight' would have noise"):
        fit_of(case, training=NoisyTraining(epochs=2, batch_size=6, train="3.*"))
    checkpointed = deepcopy(case.module())
    with torch.no_grad():
        next(checkpointed.parameters()).add_(1.0)  # networks are known by their weights
    checkpointed.gradient_checkpointing = True  # type: ignore[assignment]
    with pytest.raises(NetworkError, match="gradient_checkpointing_disable"):
        fit_of(case, checkpointed)
    with pytest.raises(NetworkError, match="load the network in float32 or bfloat16"):
        fit_of(case, deepcopy(case.module()).half())


@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_noise_is_on_every_weight_that_data_are_multiplied_by_and_on_no_other(case):
    network = case.network()
    sites = sites_of(network, case.batches[0].inputs, ("*",)).noisy
    modules = dict(network.module.named_modules())
    usual = {
        name
        for name in network.weights
        if name.endswith("weight") and isinstance(modules[name.rpartition(".")[0]], nn.Linear | nn.Conv1d | nn.Conv2d)
    }
    assert usual <= set(sites)
    assert all(network.weights[name].dim() > 1 for name in sites)


@pytest.mark.parametrize("choices", [{}, TYPE_A], ids=["independent", "correlated"])
@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_every_network_takes_a_step_and_its_rates_move(case, choices):
    fit = fit_of(case, kl_weight=0.0, **choices)  # the noise itself has to move them
    state, progress = fit.step(fit.init(), 0, LoneGang(1))
    assert math.isfinite(progress.figures["loss"])
    moved = [name for name in state if name.startswith("first_moment") and name.endswith(MARK)]
    assert moved
    assert all(float(state[name].abs().max()) > 0 for name in moved)


@pytest.mark.parametrize("num_slices", [1, 3])
@pytest.mark.parametrize("choices", [{"warm_up": 0.5}, {**TYPE_A, "kl_weight": 0.3}], ids=["independent", "correlated"])
def test_a_step_goes_down_the_mean_loss_of_all_slices_and_one_divergence(choices, num_slices):
    case = case_named("mlp")
    fit = fit_of(case, training=NoisyTraining(epochs=2, batch_size=6, num_slices=num_slices), **choices)
    state = fit.init()
    leaves = fit.leaves(state)
    batch_size, loss = 0, torch.zeros(()).double()
    for which in range(num_slices):
        batch = fit.examples.batch(fit.schedule.slice(0, which))
        noisy = NoisyProducts(list(fit.noise.fitted(leaves).values()), "local", len(batch))
        with named_noise(fit.seed.child("dropout", 0, which)), noisy:
            fit.network.module.train()  # its own dropout stays
            outputs = fit.network(batch.inputs, {name: leaf for name, leaf in leaves.items() if MARK not in name})
            fit.network.module.eval()
        loss = loss - case.likelihood.log_density(outputs, targets_of(batch)).sum()
        batch_size += len(batch)
    weight = choices.get("kl_weight", 1.0) * (1 / (0.5 * fit.num_steps) if "warm_up" in choices else 1.0)
    whole = loss / batch_size + weight * fit.noise.divergence(leaves) / len(case.items)
    expected = dict(zip(leaves, torch.autograd.grad(whole, list(leaves.values())), strict=True))
    after, _ = fit.step(state, 0, LoneGang(num_slices))
    for name, gradient in expected.items():  # Adam's first moment is a tenth of the first gradient
        made = after[f"first_moment_float64/{name}"].view_as(gradient) / 0.1
        torch.testing.assert_close(made, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "choices",
    [{}, {"sharing": "layer"}, TYPE_A, {"noise": "bernoulli", "sharing": "unit", "learn": False, "rate": 0.5}],
    ids=["weight", "layer", "correlated", "dropped"],
)
def test_stored_draws_have_the_variances_that_were_fitted(choices):
    case = case_named("mlp")
    num = 4000
    method = VariationalDropout(
        training=NoisyTraining(epochs=2, batch_size=6, learning_rate=0.05), num_draws=num, **choices
    )
    made = stages_in_memory(method, case.module(), case.items, case.likelihood, tile_weights=48)
    fit, names = fit_of(case, **choices), [name for name in made if name.startswith("draws-")]
    state = dict(made["variational"].facts["state"])
    layout = fit.bench.layout
    draws_PS = torch.cat([made[name].tensor("draws") for name in names], dim=1)
    assert draws_PS.shape == (layout.num_weights, num)
    start = 0
    for block in layout.blocks:
        rows = draws_PS[start : start + block.size]
        start += block.size
        if block.name not in fit.noise.blocks:
            assert float(rows.abs().max()) == 0
            continue
        noisy = fit.noise.blocks[block.name]
        family, shape = state[block.name]
        mean = made["variational"].tiles(family)[block.name].view(shape)
        free = made["variational"].tiles("rates")[block.name].view(noisy.free_shape)
        expected = noisy.variance(mean, free).flatten()
        error = expected * math.sqrt(2 / num) * 6
        assert ((rows.square().mean(dim=1) - expected).abs() < error + 1e-12).all()
        assert (rows.mean(dim=1).abs() < 6 * (expected / num).sqrt() + 1e-12).all()


def test_layers_start_at_rates_of_their_own():
    rates = (("*", 0.3), ("3.*", 0.7))
    fit = fit_of(case_named("mlp"), rate=0.1, layer_rates=rates, noise="correlated", sharing="layer")
    start = {name.removesuffix(MARK): float(value.exp()) for name, value in fit.noise.free.items()}
    assert start["0.weight"] == pytest.approx(0.3)
    assert start["3.weight"] == pytest.approx(0.7)
    with pytest.raises(ConfigError, match=r"'hed\.\*' in `method\.layer_rates` chooses no weight"):
        fit_of(case_named("mlp"), layer_rates=(("hed.*", 0.3),))


def test_rates_that_are_not_fitted_stay_and_cost_nothing():
    fit = fit_of(case_named("mlp"), noise="bernoulli", sharing="layer", learn=False, kl_weight=0.0)
    assert not fit.noise.free
    state, progress = fit.step(fit.init(), 0, LoneGang(1))
    assert progress.figures["price"] == 0
    assert not any(MARK in name for name in state)


def test_rates_of_a_network_in_sixteen_bits_are_kept_in_more_and_do_not_decay():
    case = case_named("mlp")
    training = NoisyTraining(epochs=2, batch_size=6, weight_decay=0.5, learning_rate=1e-3)
    fit = fit_of(case, deepcopy(case.module()).bfloat16(), training=training, kl_weight=0.0)
    before = {name: value.clone() for name, value in fit.init().items() if name.endswith(MARK)}
    state, _ = fit.step(fit.init(), 0, LoneGang(1))
    for name, value in before.items():
        if name.startswith("weight"):
            assert value.dtype == torch.float32
            assert 0 < float((state[name] - value).abs().max()) < 1.01e-3  # one step of Adam


def test_a_fit_of_some_weights_leaves_all_of_them_to_be_loaded():
    case = case_named("mlp")
    training = NoisyTraining(epochs=2, batch_size=6, train="3.*")
    made = stages_in_memory(
        VariationalDropout(training=training, weights=("3.*",), num_draws=2), case.module(), case.items, case.likelihood
    )
    loaded = trained_state(made["variational"])  # type: ignore[arg-type]
    own = case.module().state_dict()
    assert loaded.keys() == own.keys()
    assert torch.equal(loaded["0.weight"], own["0.weight"])
    assert not torch.equal(loaded["3.weight"], own["3.weight"])


def test_a_head_that_is_tied_to_an_embedding_has_no_noise_and_keeps_both_names():
    torch.manual_seed(0)
    module = Tied().eval().double()
    items = [{"words": torch.randint(6, (4,)), "label": number % 6} for number in range(12)]
    training = NoisyTraining(epochs=2, batch_size=6)
    made = stages_in_memory(VariationalDropout(training=training, num_draws=2), module, items, Categorical())
    fitted = made["variational"]
    assert list(fitted.facts["noisy"]) == ["middle.weight"]
    note, positions = fitted.facts["notes"]
    assert "middle.weight" in positions
    assert note.startswith("1 weight tensors have no noise")
    assert "embedding.weight" in note
    left = with_all_names(pruned_state(fitted), module)  # type: ignore[arg-type]
    assert left.keys() == module.state_dict().keys()
    assert torch.equal(left["head.weight"], left["embedding.weight"])


def test_weights_that_are_made_of_others_have_no_noise_and_a_note_names_them():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(7, 2)))
    network = Network(module.eval().double())
    sites = sites_of(network, {"input": torch.randn(1, 5).double()}, ("*",))
    assert list(sites.noisy) == ["0.weight"]
    assert sites.still == ["2.parametrizations.weight.original1"]


@pytest.mark.parametrize("choices", [{"kl_weight": 1.0}, {"training": NoisyTraining(label_smoothing=0.1, epochs=2)}])
def test_no_bound_is_shown_where_there_is_none(choices):
    case = case_named("mlp")
    given = {"noise": "bernoulli", "sharing": "unit", "learn": False} if "kl_weight" in choices else {}
    choices.setdefault("training", NoisyTraining(epochs=2, batch_size=6))
    made = stages_in_memory(
        VariationalDropout(num_draws=2, **given, **choices), case.module(), case.items, case.likelihood
    )
    assert "elbo" not in made["variational"].facts
    assert (made["variational"].facts["divergence"] == 0) == bool(given)


class Tied(nn.Module):
    """Words in, words out, by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.middle(self.embedding(words)).mean(dim=1))


class Attentive(nn.Module):
    """One attention of torch's own, and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, data: Tensor) -> Tensor:
        return self.attention(data, data, data, need_weights=False)[0].mean(dim=1)


def test_the_projections_of_torchs_attention_have_noise_and_keep_their_sum():
    torch.manual_seed(0)
    network = Network(Attentive().eval().double())
    data = {"data": torch.randn(3, 5, 8).double()}
    sites = sites_of(network, data, ("*",)).noisy
    assert sites == {"attention.in_proj_weight": Site(1), "attention.out_proj.weight": Site(1)}
    items = [{"data": torch.randn(5, 8).double(), "label": number % 8} for number in range(12)]
    fit = fit_on(network.module, items)
    fitted = fit.noise.fitted(network.weights)
    num = 4000
    with torch.no_grad():
        made = []
        for number in range(num):
            torch.manual_seed(number)
            with NoisyProducts(list(fitted.values()), "per_batch", 3):
                made.append(network(data, network.weights))
        explicit = []
        for number in range(num):
            place = fit.seed.child(number)
            moved = {
                name: one.mean + one.noisy.drawn(one.mean, one.free, place.child(name)) for name, one in fitted.items()
            }
            explicit.append(network(data, moved))
    ours, right = torch.stack(made), torch.stack(explicit)
    error = 6 * right.std(dim=0) / math.sqrt(num)
    assert ((ours.mean(dim=0) - right.mean(dim=0)).abs() < 1.5 * error).all()
    assert (ours.var(dim=0) / right.var(dim=0) - 1).abs().max() < 6 * 2 * math.sqrt(2 / num)
