"""The null-space method's choices, scale and certificate; its draws are compared with dense ones in agreement/."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import afterfit
from afterfit.algebra import Batch
from afterfit.errors import ConfigError, RankError
from afterfit.methods.null_space import NullSpace
from afterfit.methods.projection.scale import mean_nll
from afterfit.network.likelihoods import Categorical, Gaussian
from afterfit.predict.scores import negative_log_likelihood
from cases import NetworkCase, case_named, dense_training_rows
from memory_engine import Made, stages_in_memory
from tiny_vae import TinyVae, negative_elbo, vae_items

CUTS = {"micro_batch": 4, "num_shards": 2}


def made(case: NetworkCase, **choices: object) -> Mapping[str, Made]:
    method = NullSpace.model_validate({"num_draws": 3, "solver": "exact", **choices})
    return stages_in_memory(method, case.module(), case.items, case.likelihood, output=case.output, **CUTS)


def flat(stages: Mapping[str, Made]) -> Tensor:
    return stages["draws-00000"].tensor("draws")


def blocks_of(module: nn.Module, direction_P: Tensor) -> dict[str, Tensor]:
    parts = direction_P.split([weight.numel() for weight in module.parameters()])
    named = zip(module.named_parameters(), parts, strict=True)
    return {name: part.reshape(weight.shape) for (name, weight), part in named}


def largest_change(case: NetworkCase, direction_PS: Tensor, scale: float) -> float:
    """Of a protected example's loss in the plain network, by brute force."""
    module, batch = case.module(), case.examples.batch(range(case.num_examples))
    network = case.network()
    before = case.likelihood.log_density(network(batch.inputs), case.examples.targets()).detach()
    worst = 0.0
    for direction in direction_PS.unbind(1):
        moved = {name: network.weights[name] + scale * part for name, part in blocks_of(module, direction).items()}
        after = case.likelihood.log_density(network(batch.inputs, moved), case.examples.targets()).detach()
        worst = max(worst, float((after - before).abs().max()))
    return worst


@pytest.mark.parametrize("name", ["mlp", "conv_net", "regression"])
def test_the_scale_is_the_largest_that_keeps_every_loss_within_the_limit(name):
    case = case_named(name)
    stages = made(case, loss_change=0.05)
    facts = stages["scale"].facts
    change = largest_change(case, flat(stages), facts["scale"])
    assert facts["largest_loss_change"] == pytest.approx(change, rel=1e-6)
    assert 0.9 * 0.05 <= change <= 0.05
    assert largest_change(case, flat(stages), 1.1 * facts["scale"]) > 0.05


@pytest.mark.parametrize("kernel", ["predictive", "loss"])
def test_losses_of_protected_examples_move_with_the_square_of_the_scale(kernel):
    case = case_named("mlp")
    draws = flat(made(case, kernel=kernel, scale=0.01))
    noise = torch.randn(draws.shape, generator=torch.Generator().manual_seed(0), dtype=draws.dtype)
    unit = draws.norm(dim=0).mean()

    def growth(directions: Tensor) -> float:
        return largest_change(case, directions, float(1e-2 / unit)) / largest_change(
            case, directions, float(1e-3 / unit)
        )

    assert growth(draws) == pytest.approx(100, rel=0.2)
    assert growth(noise) == pytest.approx(10, rel=0.2)


def test_the_evidence_gives_the_length_of_the_weights_over_the_root_of_the_rank():
    case = case_named("mlp")
    stages = made(case, scale="evidence")
    theta = torch.cat([weight.flatten() for weight in case.network().weights.values()])
    rank = int(torch.linalg.matrix_rank(dense_training_rows(case).flatten(0, 1)))
    assert stages["scale"].facts["scale"] == pytest.approx(float(theta.norm()) / rank**0.5, rel=1e-12)


def test_a_given_scale_is_taken_and_measured():
    case = case_named("mlp")
    stages = made(case, scale=0.02)
    assert stages["scale"].facts["scale"] == 0.02
    assert stages["scale"].facts["largest_loss_change"] == pytest.approx(largest_change(case, flat(stages), 0.02))


def test_the_scale_by_validation_is_the_best_of_its_grid_by_the_nll_of_the_mixture(tmp_path):
    case = case_named("mlp")
    likely = case.network()(case.examples.batch(range(case.num_examples)).inputs).argmax(dim=1)
    labels = torch.where(torch.arange(len(likely)) % 3 == 0, (likely + 1) % case.num_outputs, likely)
    validation = [{**item, "label": label} for item, label in zip(case.items, labels, strict=True)]
    method = NullSpace(solver="exact", num_draws=4, scale="validation", kernel="loss")
    fitted = afterfit.fit(
        case.module(), case.items, method=method, likelihood=case.likelihood, validation=validation, store=str(tmp_path)
    )
    batch = case.examples.batch(range(case.num_examples))

    def nll(factor: float) -> float:
        outputs = fitted.predict(batch.inputs)
        moved = type(outputs)(outputs.mean, factor * outputs.displacements)  # type: ignore[attr-defined, call-arg]
        return negative_log_likelihood(moved.probabilities(), labels)

    length = fitted.facts["relative_length"]
    inside = [step for step in range(-30, 31) if 0.9 * 0.2 / 256 < length * 2 ** (step / 2) < 1.1 * 3.2]
    assert len(inside) == 25
    assert all(nll(1.0) <= nll(2 ** (step / 2)) + 1e-12 for step in inside)


def test_the_nll_of_draws_is_that_of_their_mean_and_not_a_mean_of_logs():
    mean_NC, labels = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    moved_NCS = torch.tensor([[[10.0, -10.0], [0.0, 0.0]]], dtype=torch.float64)
    assert mean_nll(Categorical(), mean_NC, moved_NCS, labels) == pytest.approx(
        torch.tensor(2.0).log().item(), abs=1e-4
    )


def test_some_examples_are_protected_and_others_move():
    case = case_named("mlp")
    stages = made(case, num_protected=5, scale=0.01)
    moved_NC = (dense_training_rows(case) @ flat(stages)[:, 0]).norm(dim=1)
    assert int((moved_NC < 1e-10 * moved_NC.max()).sum()) == 5
    assert stages["certificate-00000"].facts["num_rows"] == 5 * case.num_outputs


def test_the_certificate_tells_noise_from_draws_on_every_kind_of_row():
    case = case_named("conv_net")
    for kernel in ("predictive", "loss", "per_layer"):
        facts = made(case, kernel=kernel, scale=0.01)["certificate-00000"].facts
        assert facts["residual"] <= 1e-12
        assert facts["isotropic"] >= 1e-2


def test_a_network_without_forward_mode_is_certified_by_reverse_mode():
    class Doubled(torch.autograd.Function):
        """Has no rule for forward mode."""

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            pass

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:  # noqa: ARG004
            return 2 * gradients[0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            made = Doubled.apply(torch.tanh(self.first(x)))
            assert isinstance(made, Tensor)
            return self.last(made)

    torch.manual_seed(0)
    items = [
        {"x": torch.randn(3, dtype=torch.float64), "target": torch.zeros(2, dtype=torch.float64)} for _ in range(5)
    ]
    method = NullSpace(solver="exact", num_draws=2, scale=0.01)
    stages = stages_in_memory(method, Net().double().eval(), items, Gaussian(1.0), **CUTS)
    assert stages["certificate-00000"].facts["residual"] <= 1e-12
    assert stages["certificate-00000"].facts["isotropic"] >= 1e-2


def test_a_generative_model_is_protected_by_the_loss_that_is_named():
    torch.manual_seed(0)
    module, items = TinyVae().double().eval(), vae_items(9)
    method = NullSpace(kernel="loss", loss="tiny_vae:negative_elbo", solver="exact", num_draws=3)
    stages = stages_in_memory(method, module, items, Gaussian(1.0), **CUTS)
    pixels, noise = (torch.stack([item[name] for item in items]) for name in ("pixels", "noise"))

    def losses(weights: dict[str, Tensor]) -> Tensor:
        outputs = torch.func.functional_call(module, weights, (pixels, noise))
        return negative_elbo(outputs, {"pixels": pixels}, None)

    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    for direction in flat(stages).unbind(1):
        moved = torch.func.jvp(losses, (weights,), (blocks_of(module, direction),))[1]
        assert float(moved.abs().max()) <= 1e-12 * float(direction.norm())
    assert stages["certificate-00000"].facts["residual"] <= 1e-13
    assert stages["scale"].facts["largest_loss_change"] <= 0.1


def test_a_loss_that_is_not_one_number_for_each_example_is_refused():
    method = NullSpace(kernel="loss", loss="tiny_vae:mean_loss", solver="exact", num_draws=1)
    with pytest.raises(ConfigError, match=r"returned .* for 2 examples; return one number for each"):
        stages_in_memory(method, TinyVae().double().eval(), vae_items(4), Gaussian(1.0), **CUTS)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"num_protected": 99}, "`num_protected` is 99, but there are 14 training examples"),
        ({"loss": "tiny_vae:negative_elbo"}, "set `method.kernel: loss`"),
        ({"kernel": "global_basis"}, "set `method.global_basis`"),
        ({"solver": "cg", "preconditioner": "nystrom"}, "`method.global_basis`"),
        ({"kernel": "loss", "loss": "tiny_vae:nothing"}, "cannot be imported"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_the_remedy(choices, said):
    with pytest.raises(ConfigError, match=said):
        made(case_named("mlp"), **choices)


@pytest.mark.parametrize("kernel", ["predictive", "loss"])
def test_a_regression_with_noise_that_is_fitted_is_protected_as_well(tmp_path, kernel):
    case = case_named("regression")
    method = NullSpace(kernel=kernel, solver="exact", num_draws=2)
    fitted = afterfit.fit(case.module(), case.items, method=method, likelihood="gaussian", store=str(tmp_path))
    assert fitted.facts["residual"] <= 1e-12
    assert fitted.facts["noise_variance"] > 0
    assert 0.09 <= fitted.facts["largest_loss_change"] <= 0.1


@pytest.mark.parametrize("solver", ["exact", "cg", "alternating"])
def test_rows_that_span_all_weights_leave_nothing_to_draw_from(solver):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    items = [{"input": row, "target": row[:1]} for row in rows]
    method = NullSpace(solver=solver, num_draws=2, tolerance=1e-8, max_passes=2000, block_size=5)
    with pytest.raises(RankError, match=r"40 protected rows span all 7 weights.*`method.num_protected`"):
        stages_in_memory(method, nn.Linear(6, 1).double().eval(), items, Gaussian(1.0), **CUTS)


def test_where_no_loss_changes_the_scale_is_that_of_the_evidence():
    rows = torch.eye(6, dtype=torch.float64)[:4]
    items = [{"input": row, "target": row[:1]} for row in rows]
    stages = stages_in_memory(
        NullSpace(solver="exact", num_draws=2), nn.Linear(6, 1).double().eval(), items, Gaussian(1.0), **CUTS
    )
    facts = stages["scale"].facts
    assert facts["largest_loss_change"] <= 1e-12  # the network is linear
    assert facts["notes"]
    assert facts["relative_length"] <= 1.5


def test_draws_stay_what_they_were_when_more_are_added():
    case = case_named("mlp")
    few, more = made(case, num_draws=3), made(case, num_draws=3, more_draws=(5, 8), draws_at_once=4)
    assert [name for name in more if name.startswith("draws-")] == ["draws-00000", "draws-00003", "draws-00005"]
    assert torch.equal(flat(few), flat(more))
    assert more["draws-00005"].tensor("draws").shape[1] == 3
    together = made(case, num_draws=8, draws_at_once=8)["draws-00000"].tensor("draws")
    apart = torch.cat([more[f"draws-{first:05d}"].tensor("draws") for first in (0, 3, 5)], dim=1)
    assert torch.allclose(together, apart, atol=1e-12)


def test_the_complement_of_a_global_basis_is_orthogonal_to_it():
    case = case_named("vit")
    stages = made(case, kernel="global_basis", global_basis=6, solver="auto", scale=0.01)
    basis_PK = stages["basis"].tensor("basis")
    inside = basis_PK.T @ flat(stages)
    assert basis_PK.shape[1] == 6
    assert float(inside.abs().max()) <= 1e-12 * float(flat(stages).norm())


def test_the_network_itself_and_the_linearised_one_predict_under_the_same_draws(tmp_path):
    case = case_named("conv_net")
    method = NullSpace(solver="exact", num_draws=4, kernel="loss")
    posterior = afterfit.fit(
        case.module(), case.items, method=method, likelihood=case.likelihood, store=str(tmp_path), micro_batch=4
    )
    fresh: Batch = case.fresh.batch(range(5))
    linear, plain = posterior.predict(fresh), posterior.predict(fresh, by="network")  # type: ignore[call-arg]
    weights = posterior.draw(number=2)  # type: ignore[call-arg]
    expected = case.network()(fresh.inputs, weights)
    assert torch.allclose(plain.mean + plain.displacements[..., 2], expected)  # type: ignore[attr-defined]
    assert linear.displacements.shape == (5, case.num_outputs, 4)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="--more-draws"):
        posterior.draw(number=4)  # type: ignore[call-arg]
