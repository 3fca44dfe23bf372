"""The program from Python: fit, predict, save, load, and data that come later."""

import pytest
import torch
from torch import nn

import afterfit
from afterfit.errors import ArtifactError, ConfigError, DataError, NetworkError
from cases import case_named

CASE = case_named("mlp")
METHOD = afterfit.Ella(num_landmarks=40, num_features=20, prior_precision=1.0, temperature=1.0)


def items(start: int = 0, stop: int | None = None) -> list[dict[str, torch.Tensor]]:
    examples = CASE.examples
    stop = examples.num_examples if stop is None else stop
    return [{"input": examples.inputs["input"][i], "label": examples.labels[i]} for i in range(start, stop)]


@pytest.fixture(scope="module")
def posterior():
    return afterfit.fit(CASE.module(), items(), method=METHOD)


def test_a_posterior_predicts_at_once_in_the_dtype_of_the_network(posterior):
    outputs = posterior.predict(CASE.fresh.batch(range(5)).inputs)
    assert outputs.mean.shape == (5, 4)
    assert outputs.covariance.shape == (5, 4, 4)
    assert outputs.mean.dtype == outputs.covariance.dtype == torch.float64
    for link in ("probit", "monte_carlo", "laplace_bridge"):
        total = outputs.probabilities(link=link).sum(dim=1)
        assert torch.allclose(total, torch.ones(5, dtype=torch.float64), atol=1e-12)


def test_a_saved_posterior_loads_with_its_network_and_predicts_the_same(posterior, tmp_path):
    posterior.save(str(tmp_path / "store"))
    again = afterfit.load(str(tmp_path / "store"), network=CASE.module())
    batch = CASE.fresh.batch(range(5))
    assert torch.equal(again.predict(batch).covariance, posterior.predict(batch).covariance)
    assert again.facts == posterior.facts


def test_loading_without_the_network_or_with_another_one_is_one_sentence(posterior, tmp_path):
    posterior.save(str(tmp_path / "store"))
    with pytest.raises(ConfigError, match="pass the network"):
        afterfit.load(str(tmp_path / "store"))
    with pytest.raises(ArtifactError, match="another network"):
        afterfit.load(str(tmp_path / "store"), network=nn.Linear(5, 4).double().eval())


def test_draws_have_the_mean_and_covariance_of_the_posterior(posterior):
    layout = posterior.network.layout
    draws_SP = torch.stack(
        [
            torch.cat([tile for _, tile in posterior.weights.draw(posterior.basis, afterfit_seed(), number)])
            for number in range(2000)
        ]
    )
    basis_PK = torch.cat(list(posterior.basis.values()))
    inside_SK = draws_SP @ basis_PK
    expected_KK = posterior.weights.root_KK @ posterior.weights.root_KK.T
    # A sample covariance of n normals has standard error sqrt((s_ii s_jj + s_ij^2) / n).
    scale_KK = expected_KK.diagonal()[:, None] * expected_KK.diagonal()[None]
    error_KK = ((scale_KK + expected_KK**2) / len(draws_SP)).sqrt()
    assert bool((((inside_SK.T @ inside_SK) / len(draws_SP) - expected_KK).abs() <= 5 * error_KK).all())
    weights = posterior.draw(seed=1)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        block.name: block.shape for block in layout.blocks
    }
    assert all(torch.equal(value, posterior.draw(seed=1)[name]) for name, value in weights.items())


def afterfit_seed():
    from afterfit.seeds import Seed

    return Seed(3)


def test_a_network_in_train_mode_is_refused():
    with pytest.raises(NetworkError, match="train mode"):
        afterfit.fit(CASE.module().train(), items(), method=METHOD)


def test_labels_out_of_range_are_refused_before_any_work():
    wrong = [*items(), {"input": torch.zeros(5, dtype=torch.float64), "label": torch.tensor(4)}]
    with pytest.raises(DataError, match="label 4"):
        afterfit.fit(CASE.module(), wrong, method=METHOD)


def test_more_landmarks_than_rows_are_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match="only 56 rows"):
        afterfit.fit(CASE.module(), items(), method=afterfit.Ella(num_landmarks=57))


def test_more_features_than_landmarks_are_lowered_and_said_once():
    method = METHOD.model_copy(update={"num_landmarks": 8, "num_features": 50})
    posterior = afterfit.fit(CASE.module(), items(), method=method)
    assert posterior.facts["num_features"] <= 8
    notes = posterior.store.read(posterior.record.stages["basis"]).facts["notes"]
    assert sum("num_features" in note for note in notes) == 1


def test_choosing_by_validation_without_data_is_one_sentence():
    method = METHOD.model_copy(update={"prior_precision": "auto", "tuning": "validation"})
    with pytest.raises(ConfigError, match="validation data"):
        afterfit.fit(CASE.module(), items(), method=method)


def test_a_second_fit_into_the_same_store_repeats_nothing(tmp_path):
    first = afterfit.fit(CASE.module(), items(), method=METHOD, store=str(tmp_path))
    places = first.store.places()
    attempts = {place: first.store.read(place).digest for place in places}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    again = afterfit.fit(CASE.module(), items(), method=METHOD, store=str(tmp_path))
    assert {place: again.store.read(place).digest for place in places} == attempts
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
