"""Hessian-free Laplace from Python and from the command line: predictions, refusals, scores, and what is told."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import afterfit
from afterfit.algebra import Artifact
from afterfit.errors import ConfigError, DataError
from afterfit.store.directory import open_store
from cases import case_named
from tiny_project import call, config, good, refusal, write_config, write_project

METHOD: dict[str, Any] = {"name": "hessian_free", "queries": 3, "prior_precision": 1.0, "rank": 16}

SCORE: dict[str, Any] = {**METHOD, "amortised": "score"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A finished run of refits."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project(folder)
        write_config(folder / "refits.yaml", config(method=METHOD, store="refits"))
        good("run", "refits.yaml")
    return folder


def test_refits_products_and_the_full_gaussian_predict_the_same(tmp_path):
    case = case_named("mlp")
    methods = {
        "refits": afterfit.HessianFree(prior_precision=1.0, tolerance=1e-5),
        "products": afterfit.ImplicitHessian(prior_precision=1.0, tolerance=1e-7),
        "gaussian": afterfit.GgnNystrom(num_probes=case.num_weights, prior_precision=1.0),
    }
    found = {}
    for name, method in methods.items():
        posterior = afterfit.fit(case.module(), case.items, method=method, store=str(tmp_path / name))
        found[name] = posterior.predict(dict(case.fresh.inputs))
    right = found["gaussian"].covariance
    for name in ("refits", "products"):
        torch.testing.assert_close(found[name].covariance, right, rtol=0, atol=1e-5 * float(right.max()))
        torch.testing.assert_close(found[name].mean, found["gaussian"].mean)
    some = posterior.predict(dict(case.fresh.inputs), outputs=[2, 0])
    torch.testing.assert_close(some.covariance, right[:, [2, 0]][:, :, [2, 0]])


def test_a_loaded_posterior_wants_the_training_data_and_has_no_weights_to_draw(tmp_path):
    case = case_named("mlp")
    method = afterfit.HessianFree(prior_precision=1.0, lambda_sd=1e-2)
    afterfit.fit(case.module(), case.items, method=method, store=str(tmp_path))
    loaded = afterfit.load(str(tmp_path), network=case.module())
    with pytest.raises(ConfigError, match="call `fit` again with the data and this store"):
        loaded.predict(dict(case.fresh.inputs))
    with pytest.raises(ConfigError, match="no weights to draw"):
        loaded.draw()


def test_a_run_answers_the_first_examples_and_its_store_predicts_others(project, monkeypatch):
    monkeypatch.chdir(project)
    stages = _answers("refits")
    table = stages.table("queries")
    assert sorted(set(table["index"].to_pylist())) == [0, 1, 2]
    assert max(table["residual"].to_pylist()) <= 3e-3
    assert min(table["variance"].to_pylist()) > 0
    good("predict", "refits", "--data", "test.parquet", "--out", "some.parquet")
    covariance = stages.tensor("covariance")
    predicted = pq.read_table("some.parquet").slice(0, 3)
    variance = torch.tensor(predicted["variance"].to_pylist(), dtype=torch.float64)
    torch.testing.assert_close(variance, covariance.diagonal(dim1=1, dim2=2), rtol=1e-3, atol=0)


def test_the_largest_outputs_alone_are_solved_for(project, monkeypatch):
    monkeypatch.chdir(project)
    write_config(project / "largest.yaml", config(method={**METHOD, "outputs": 2}, store="largest"))
    good("run", "largest.yaml")
    whole, part = (_answers(name) for name in ("refits", "largest"))
    table = part.table("queries")
    assert table.num_rows == 3 * 2
    right, found = whole.tensor("covariance"), part.tensor("covariance")
    variances = right.diagonal(dim1=1, dim2=2)
    for row in table.to_pylist():
        assert row["variance"] == pytest.approx(float(variances[row["index"], row["output"]]), rel=1e-4)
    assert (found.diagonal(dim1=1, dim2=2) > (1 - 1e-4) * variances).all()
    assert "covariance-test" in good("plan", "largest.yaml")


def _answers(store: str) -> Artifact:
    return open_store(store).read(afterfit.load(store).record.stages["covariance-test"])


def test_the_report_says_where_the_plateau_is(project):
    page = (project / "refits" / "report.html").read_text()
    assert "decades of lambda" in page


def test_signs_and_scores_from_the_command_line(project, monkeypatch):
    monkeypatch.chdir(project)
    few = {**METHOD, "queries": None, "amortised": "hutchinson", "num_refits": 8}
    write_config(project / "signs.yaml", config(method=few, store="signs"))
    assert "refits with signs, with a relative standard error of" in good("run", "signs.yaml")
    assert (_answers("signs").tensor("error") > 0).any()
    write_config(project / "score.yaml", config(method={**SCORE, "queries": None}, store="score"))
    assert "have no unit" in good("run", "score.yaml")
    data = {name: part for name, part in config()["data"].items() if name != "validation"}
    write_config(project / "unscaled.yaml", config(method={**SCORE, "queries": 4}, store="unscaled", data=data))
    assert "give `data.validation`" in refusal("run", "unscaled.yaml")


def test_a_score_has_one_unit_whatever_it_is_asked_among(project, monkeypatch):
    monkeypatch.chdir(project)
    write_config(project / "score.yaml", config(method={**SCORE, "queries": 4}, store="scores"))
    good("run", "score.yaml")
    whole = pq.read_table("test.parquet")
    pq.write_table(whole.slice(0, 1), "one.parquet")
    found = []
    for name in ("test", "one"):
        good("predict", "scores", "--data", f"{name}.parquet", "--out", f"scored-{name}.parquet")
        found.append(pq.read_table(f"scored-{name}.parquet")["variance"][0].as_py())
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    record = afterfit.load("scores").record
    by_run = open_store("scores").read(record.stages["predictions-test"]).table("predictions")["variance"][0].as_py()
    assert by_run == pytest.approx(found[0], rel=1e-4)


def test_a_few_new_rows_are_answered_one_by_one_after_signs(project, monkeypatch):
    monkeypatch.chdir(project)
    write_config(
        project / "few.yaml", config(method={**METHOD, "amortised": "hutchinson", "num_refits": 8}, store="few")
    )
    good("run", "few.yaml")
    pq.write_table(pq.read_table("test.parquet").slice(0, 2), "two.parquet")
    good("predict", "few", "--data", "two.parquet", "--out", "two-out.parquet")
    assert pq.read_table("two-out.parquet").num_rows == 2


def test_a_trained_run_predicts_with_its_trained_weights_and_its_own_data_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    trained = {"epochs": 5, "batch_size": 9, "learning_rate": 0.05}
    write_config(tmp_path / "trained.yaml", config(method=METHOD, training=trained, store="trained"))
    good("run", "trained.yaml")
    posterior = afterfit.load("trained")
    stored = open_store("trained").read(posterior.record.stages["covariance-test"])
    inputs = torch.tensor(pq.read_table("test.parquet")["input"].to_pylist())
    found = posterior.predict({"input": inputs[:3]})
    torch.testing.assert_close(found.mean, stored.tensor("mean"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.covariance, stored.tensor("covariance"), rtol=1e-3, atol=1e-5)
    pq.write_table(pq.read_table("more.parquet"), "train.parquet")
    with pytest.raises(DataError, match="restore it, or run again to start from the new data"):
        afterfit.load("trained").predict({"input": inputs[:3]})
    assert "restore it, or run again to start from the new data" in refusal(
        "predict", "trained", "--data", "test.parquet", "--out", "o.parquet"
    )


def test_more_refits_than_queries_are_refused_with_their_number(project, monkeypatch):
    monkeypatch.chdir(project)
    many = {**METHOD, "queries": 2, "amortised": "hutchinson", "num_refits": 500}
    write_config(project / "many.yaml", config(method=many, store="many"))
    said = refusal("run", "many.yaml")
    assert "500 refits with signs are asked for, and 6 refits answer all queries exactly" in said


@pytest.mark.parametrize("amortised", [None, "hutchinson", "score"])
def test_negative_curvature_is_refused_however_queries_are_answered(project, monkeypatch, amortised):
    monkeypatch.chdir(project)
    method = {**METHOD, "network": "exact", "lambda_sd": 1e-3, "prior_precision": 0.01, "amortised": amortised}
    write_config(project / "bent.yaml", config(method=method, store=f"bent-{amortised}"))
    made = call("run", "bent.yaml")
    assert made.exit_code != 0
    assert "Error: The loss has negative curvature along" in made.stderr


def test_auto_takes_the_linearised_network_where_the_loss_has_negative_curvature(project, monkeypatch):
    monkeypatch.chdir(project)
    found = {}
    for network, prior in (("auto", 0.01), ("auto", 100.0)):
        method = {**METHOD, "network": network, "prior_precision": prior}
        write_config(project / "auto.yaml", config(method=method, store=f"auto-{prior:g}"))
        said = good("run", "auto.yaml")
        found[prior] = afterfit.load(f"auto-{prior:g}").facts["kind"]
        assert ("variances are of the network linearised there" in said) == (prior == 0.01)
    assert found == {0.01: "linearised", 100.0: "exact"}


def test_a_network_that_is_sure_of_everything_has_the_variance_of_its_prior(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        network[0].bias.fill_(-100.0)
        network[2].bias.copy_(torch.tensor([2000.0, -2000.0]))
    items = [{"input": torch.randn(3), "label": torch.tensor(0)} for _ in range(9)]
    fresh = {"input": torch.randn(2, 3)}
    for number, method in enumerate(
        (afterfit.HessianFree, afterfit.ImplicitHessian, afterfit.GgnNystrom),
    ):
        posterior = afterfit.fit(network, items, method=method(prior_precision=2.0), store=str(tmp_path / str(number)))
        covariance = posterior.predict(fresh).covariance
        torch.testing.assert_close(covariance, torch.eye(2, dtype=covariance.dtype).expand(2, 2, 2) / 2)


def test_a_score_has_no_unit_from_python(project, monkeypatch):
    monkeypatch.chdir(project)
    write_config(project / "score.yaml", config(method={**SCORE, "queries": 4}, store="scored"))
    good("run", "score.yaml")
    with pytest.raises(ConfigError, match="has no unit by itself"):
        afterfit.load("scored").predict({"input": torch.zeros(1, 3)})


def test_the_plan_counts_every_stage(project, monkeypatch):
    monkeypatch.chdir(project)
    said = good("plan", "refits.yaml", "--store", "elsewhere")
    for stage in ("plateau", "covariance-test", "predictions-test"):
        assert stage in said
