"""The commands as a user types them, each on a tiny project of its own."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from afterfit.store.directory import open_store
from tiny_project import (
    NUM_CLASSES,
    SIZES,
    computed,
    config,
    data,
    good,
    markers,
    rows,
    skipped,
    write_config,
    write_project,
    write_rows,
)

TRAINED = config(training={"epochs": 3, "batch_size": 12, "learning_rate": 0.03})
"""The tiny project with a network that is trained first, as the quickstart's is."""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A new project, and the place to be."""
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def states(stdout: str) -> dict[str, str]:
    """Stage -> its state, of a plan or a status."""
    return dict(re.findall(r"│ (\S+) +│.*│ (done|partial|missing) ", stdout))


def digests(uri: str) -> dict[str, str]:
    """Place of every stage of the store's run -> its digest."""
    store = open_store(uri)
    return {place: store.read(place).digest for place in store.get_record("run.json")["stages"].values()}


def test_run_plan_status_and_set(project):
    write_config(project / "tiny.yaml", TRAINED)
    before = good("plan", "tiny.yaml")
    assert set(states(before).values()) == {"missing"}
    assert "13 of 13 stages to do" in before
    assert "Rows: the tape has rules for all of the weights." in before
    assert re.search(r"Products with \d+ columns go by (rows|columns) ", before)
    assert not list((project / "store").rglob("manifest.json"))

    first = good("run", "tiny.yaml")
    assert len(computed(first)) == 13
    finished = markers(project / "store")
    assert set(states(good("plan", "tiny.yaml")).values()) == {"done"}
    assert set(states(good("status", "store")).values()) == {"done"}

    second = good("run", "tiny.yaml")
    assert "Nothing was to be done: every stage is in the store." in second
    assert len(skipped(second)) == 13
    assert markers(project / "store") == finished

    # One field of the prediction: what comes before it is kept.
    other = good("run", "tiny.yaml", "--set", "prediction.num_draws=64")
    assert computed(other) == {"predictions-test", "predictions-far", "scores"}
    assert finished.items() <= markers(project / "store").items()

    # A piece that is gone: its stage is partial, and only the piece is made again.
    place = json.loads((project / "store" / "run.json").read_text())["stages"]["curvature"]
    (project / "store" / place / "manifest.json").unlink()
    shutil.rmtree(project / "store" / place / "unit" / "shard-00001")
    assert states(good("status", "store"))["curvature"] == "partial"
    assert states(good("plan", "tiny.yaml"))["curvature"] == "partial"
    assert computed(good("run", "tiny.yaml")) == {"curvature"}
    again = markers(project / "store")
    assert again[f"{place}/unit/shard-00000"] == finished[f"{place}/unit/shard-00000"]
    assert {name: digest for name, (_, digest) in finished.items()}.items() <= {
        name: digest for name, (_, digest) in again.items()
    }.items()


def test_predictions_are_those_of_the_loaded_posterior(project):
    import afterfit

    good("run", "tiny.yaml")
    assert "Wrote 12 predictions to new/p.parquet" in good(
        "predict", "store", "--data", "more.parquet", "--out", "new/p.parquet", "--link", "probit"
    )
    table = pq.read_table("new/p.parquet")
    outputs = afterfit.load("store").predict({"input": rows("more", 12)[0]})
    # float32, micro-batches of another size
    assert np.allclose(np.stack(table["mean"].to_pylist()), outputs.mean, atol=1e-5)
    assert np.allclose(np.stack(table["variance"].to_pylist()), outputs.variance, rtol=1e-3)
    expected = outputs.probabilities(link="probit")
    assert np.allclose(np.stack(table["probabilities"].to_pylist()), expected, atol=1e-4)
    assert table["label"].to_pylist() == rows("more", 12)[1]


@pytest.mark.parametrize("method", ["ella", "ggn_nystrom"])
def test_an_extension_redoes_no_sum_and_equals_the_fit_on_all_data(project, method):
    choices: dict[str, Any] = {"prior_precision": 1.0, "temperature": 1.0}
    if method == "ella":
        choices |= {"name": "ella", "num_landmarks": 20, "num_features": 6}
        expensive = {"point_estimate", "landmarks", "gram", "basis", "curvature"}
    else:
        choices |= {"name": "ggn_nystrom", "num_probes": 57}  # as many as there are weights: exact
        expensive = {"point_estimate", "sketch"}
    write_config(project / "tiny.yaml", config(method=choices))
    good("run", "tiny.yaml")
    before = markers(project / "store")

    extended = good("extend", "store", "--data", "more.parquet")
    assert expensive <= skipped(extended)
    assert f"{'curvature' if method == 'ella' else 'sketch'}-extension_1" in computed(extended)
    assert before.items() <= markers(project / "store").items()
    # The same command again adds nothing twice.
    assert "Nothing was to be done" in good("extend", "store", "--data", "more.parquet")
    stages = json.loads((project / "store" / "run.json").read_text())["stages"]
    whole = open_store("store").read(stages["posterior"])

    numbers, labels = zip(rows("train", SIZES["train"]), rows("more", SIZES["more"]), strict=True)
    write_rows(project / "both.parquet", torch.cat(numbers), [*labels[0], *labels[1]])
    if method == "ella":
        expected = _curvature_of_both(project)
    else:
        both = config(store="both", method=choices)
        both["data"]["train"] = data("both")
        write_config(project / "both.yaml", both)
        good("run", "both.yaml")
        place = json.loads((project / "both" / "run.json").read_text())["stages"]["posterior"]
        fitted = open_store("both").read(place)
        assert whole.facts["log_evidence_nats"] == pytest.approx(fitted.facts["log_evidence_nats"], rel=1e-4)
        expected = fitted.tensor("curvature")
    # float32 sums; the smallest directions of a sketch are rounding.
    largest = float(expected[0])
    assert torch.allclose(whole.tensor("curvature")[:6], expected[:6], rtol=1e-3, atol=1e-5 * largest)


def _curvature_of_both(project: Path) -> torch.Tensor:
    """Eigenvalues of the curvature of all 48 examples in the basis of the first 36, by automatic differentiation."""
    import afterfit
    from afterfit.algebra import Batch
    from afterfit.network.likelihoods import Categorical
    from cases import dense_jacobian

    posterior = afterfit.load(str(project / "store"))
    inputs = pq.read_table("both.parquet")["input"].to_pylist()
    batch = Batch({"input": torch.tensor(inputs)}, None, torch.arange(len(inputs)))
    rows_NCP = dense_jacobian(posterior.network, batch).double()
    features_NCK = rows_NCP @ torch.cat(list(posterior.basis.values())).double()
    with torch.no_grad():
        hessian_NCC = Categorical().hessian(posterior.network(batch.inputs)).double()
    assert hessian_NCC.shape[1] == NUM_CLASSES
    curvature_KK = torch.einsum("nck,ncd,ndl->kl", features_NCK, hessian_NCC, features_NCK)
    return torch.linalg.eigvalsh(curvature_KK).flip(0)


def test_a_store_in_s3_has_the_digests_of_a_folder_and_data_may_be_there_too(project, s3):
    good("run", "tiny.yaml")
    here = good("run", "tiny.yaml", "--store", "s3://fits/tiny")
    assert len(computed(here)) == 13
    assert "Nothing was to be done" in good("run", "tiny.yaml", "--store", "s3://fits/tiny")
    assert digests("s3://fits/tiny") == digests("store")
    assert set(states(good("status", "s3://fits/tiny")).values()) == {"done"}

    for name in (*SIZES, "far"):
        s3.upload_file(f"{name}.parquet", "data", f"set/{name}.parquet")
    tree = config()
    for role in ("train", "validation"):
        tree["data"][role]["path"] = f"s3://data/set/{role}.parquet"
    write_config(project / "remote.yaml", tree)
    good("run", "remote.yaml", "--store", "s3://fits/remote")
    # Objects have ETags where files have digests: other keys, the same numbers.
    ours, theirs = digests("store"), digests("s3://fits/remote")
    assert sorted(ours.values()) == sorted(theirs.values())
    good(
        "predict",
        "s3://fits/remote",
        "--data",
        "s3://data/set/more.parquet",
        "--out",
        "s3://fits/out/p.parquet",
    )
    s3.download_file("fits", "out/p.parquet", "p.parquet")
    assert pq.read_table("p.parquet").num_rows == SIZES["more"]
