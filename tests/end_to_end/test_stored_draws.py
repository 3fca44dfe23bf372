"""Stored draws from the command and from Python: run, predict, more draws, save, load; the draws are a toy's."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import afterfit
from afterfit import methods
from afterfit.errors import ConfigError
from afterfit.network.functional import Network
from cases import assert_near, case_named, dense_jacobian
from tiny_project import computed, config, good, markers, refusal, rows, skipped, write_config, write_project
from toy_draws import ToyDraws, noise

CASE = case_named("mlp")
SCALE = 0.1


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The toy is in the table of methods."""
    monkeypatch.setitem(methods.METHODS, "toy_draws", "toy_draws:ToyDraws")  # type: ignore[arg-type]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A finished run with six draws."""
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    write_config(tmp_path / "tiny.yaml", config(method={"name": "toy_draws", "num_draws": 6}))
    good("run", "tiny.yaml")
    return tmp_path


@pytest.fixture(scope="module")
def posterior():
    return afterfit.fit(CASE.module(), CASE.items, method=ToyDraws())


def dense_draws(network: Network, num: int) -> torch.Tensor:
    """(P, S)."""
    tiles = network.layout.tiles
    return torch.stack(
        [torch.cat([noise(0, tile.name, tile.size, number) for tile in tiles]) for number in range(num)], dim=1
    )


def test_a_run_says_what_its_draws_are_and_how_they_detect_what_is_far(project):
    write_config(project / "other.yaml", config(store="other", method={"name": "toy_draws", "num_draws": 6}))
    plan = good("plan", "other.yaml")
    assert "Products with" not in plan
    assert not re.search(r"(features|predictions|posterior|scores).*│ +- │", plan)  # every cost is known
    scores = good("run", "other.yaml")
    assert re.search(r"OOD AUROC \(variance\) +│ +- │ +0\.\d{4}", scores)
    page = (project / "other" / "report.html").read_text()
    for shown in ("largest loss change", "num draws", "predicted by", "OOD AUROC (variance)"):
        assert shown in page
    assert set(re.findall(r"│ (?:done|partial|missing) ", good("status", "store"))) == {"│ done "}


def test_a_variational_run_shows_how_its_bound_rose(project):
    method = {"name": "slang", "rank": 2, "epochs": 3, "batch_size": 8, "initial_precision": 100.0, "num_draws": 4}
    write_config(project / "slang.yaml", config(store="slang", method=method))
    good("run", "slang.yaml", "--set", "prediction.by=network")
    page = (project / "slang" / "report.html").read_text()
    assert "Evidence lower bound" in page
    assert len(re.findall("data:image/svg", page)) == 4  # with the scores, the reliability and the confidence


def test_predict_writes_what_the_loaded_posterior_predicts(project):
    said = good("predict", "store", "--data", "more.parquet", "--out", "p.parquet")
    assert "Wrote 12 predictions" in said
    assert "disagreement" in said
    table = pq.read_table("p.parquet")
    outputs = afterfit.load("store").predict({"input": rows("more", 12)[0]})
    # float32, micro-batches of another size
    assert np.allclose(np.stack(table["mean"].to_pylist()), outputs.mean, atol=1e-5)
    assert np.allclose(np.stack(table["variance"].to_pylist()), outputs.variance, rtol=1e-3)
    assert np.allclose(np.stack(table["probabilities"].to_pylist()), outputs.probabilities("monte_carlo"), atol=1e-4)
    assert np.allclose(table["disagreement"].to_pylist(), outputs.disagreement, rtol=1e-3)  # type: ignore[attr-defined]
    assert "that were in the store already" in good("predict", "store", "--data", "more.parquet", "--out", "q.parquet")
    good("predict", "store", "--data", "more.parquet", "--out", "r.parquet", "--link", "probit")
    probit = np.stack(pq.read_table("r.parquet")["probabilities"].to_pylist())
    assert np.allclose(probit, outputs.probabilities("probit"), atol=1e-4)


def test_a_run_by_the_plain_network_predicts_new_data_by_it_too(project):
    good("run", "tiny.yaml", "--set", "prediction.by=network")
    good("predict", "store", "--data", "more.parquet", "--out", "p.parquet")
    table = pq.read_table("p.parquet")
    batch = {"input": rows("more", 12)[0]}
    loaded = afterfit.load("store")
    variance = np.stack(table["variance"].to_pylist())
    assert np.allclose(variance, loaded.predict(batch, by="network").variance, rtol=1e-3)
    assert not np.allclose(variance, loaded.predict(batch).variance, rtol=1e-2)


def test_more_draws_are_added_to_those_there_are_and_only_once(project):
    before = markers(project / "store")
    first = good("extend", "store", "--more-draws", "9")
    assert {"draws-00000", "draws-00003", "features-test-00003", "scale", "certificate-00000"} <= skipped(first)
    assert {"draws-00006", "features-far-00006", "posterior", "predictions-test"} <= computed(first)
    assert before.items() <= markers(project / "store").items()
    assert "Nothing was to be done" in good("extend", "store", "--more-draws", "9")
    assert afterfit.load("store").facts["num_draws"] == 9
    # Interrupted: a piece of the new chunk is gone, and the same command makes it again.
    place = afterfit.load("store").record.stages["draws-00006"]
    shutil.rmtree(project / "store" / place)
    assert computed(good("extend", "store", "--more-draws", "9")) == {"draws-00006"}


def test_what_cannot_be_extended_is_refused_in_one_sentence(project):
    assert "has 6 draws" in refusal("extend", "store", "--more-draws", "5")
    assert "--more-draws" in refusal("extend", "store")
    assert "one of the two" in refusal("extend", "store", "--more-draws", "9", "--data", "more.parquet")
    assert "add the data to `train`" in refusal("extend", "store", "--data", "more.parquet")
    write_config(project / "ella.yaml", config(store="ella"))
    good("run", "ella.yaml")
    assert "The method ella stores no draws" in refusal("extend", "ella", "--more-draws", "9")
    by_network = refusal("run", "ella.yaml", "--set", "prediction.by=network")
    assert "evaluated at stored draws only" in by_network


@pytest.mark.parametrize("by", ["linearised", "network"])
def test_the_python_posterior_predicts_under_every_draw(posterior, by):
    network, batch = posterior.network, CASE.fresh.batch(range(5))
    outputs = posterior.predict(batch.inputs, by=by)
    assert outputs.displacements.shape == (5, 4, 6)
    if by == "linearised":
        expected = SCALE * dense_jacobian(network, batch) @ dense_draws(network, 6)
    else:
        with torch.no_grad():
            moved = [network(batch.inputs, posterior.draw(number=number)) for number in range(6)]
            expected = torch.stack(moved, dim=2) - network(batch.inputs)[..., None]
    assert_near(outputs.displacements, expected, 1e-9)
    some = posterior.predict(batch.inputs, outputs=[2, 0], by=by)
    assert_near(some.displacements, outputs.displacements[:, [2, 0]], 1e-12)
    assert torch.equal(some.mean, outputs.mean[:, [2, 0]])
    with pytest.raises(ConfigError, match="outputs"):
        posterior.predict(batch.inputs, outputs=[4], by=by)


def test_a_draw_is_read_from_the_store_and_one_that_is_not_there_names_the_remedy(posterior):
    layout = posterior.network.layout
    for number in (0, 2, 3, 5):
        drawn = posterior.draw(number=number)
        moved = torch.cat([layout.cut(drawn, tile) - layout.cut(posterior.network.weights, tile) for tile in layout])
        assert_near(moved, SCALE * dense_draws(posterior.network, 6)[:, number], 1e-12)
    with pytest.raises(ConfigError, match=r"6 are stored.*`afterfit extend STORE --more-draws 8`.*larger `num_draws`"):
        posterior.draw(number=7)
    with pytest.raises(ConfigError, match="by its number alone"):
        posterior.draw(seed=1)


def test_a_saved_posterior_loads_with_its_draws(posterior, tmp_path):
    posterior.save(str(tmp_path / "copy"))
    again = afterfit.load(str(tmp_path / "copy"), network=CASE.module())
    batch = CASE.fresh.batch(range(5))
    assert again.facts == posterior.facts
    assert torch.equal(again.predict(batch).covariance, posterior.predict(batch).covariance)
    assert torch.equal(again.predict(batch).probabilities(), posterior.predict(batch).probabilities())
    drawn = again.draw(number=4)
    assert all(torch.equal(value, drawn[name]) for name, value in posterior.draw(number=4).items())


def test_a_larger_fit_into_the_same_store_keeps_the_draws_there_are(tmp_path):
    afterfit.fit(CASE.module(), CASE.items, method=ToyDraws(), store=str(tmp_path))
    before = markers(tmp_path)
    larger = afterfit.fit(CASE.module(), CASE.items, method=ToyDraws(num_draws=9), store=str(tmp_path))
    assert before.items() <= markers(tmp_path).items()
    assert larger.draw(number=8)
