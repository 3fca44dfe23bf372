"""Regression, text, a language model and a last layer, each by a configuration file."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from afterfit.store.directory import open_store
from tiny_project import (
    SIZES,
    computed,
    config,
    good,
    write_config,
    write_project,
)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A new project, and the place to be."""
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "ella", "num_landmarks": 30, "num_features": 10},
        {"name": "ggn_nystrom", "num_probes": 20},
        {
            "name": "ella",
            "num_landmarks": 30,
            "num_features": 10,
            "complement": "prior",
            "tuning": "marginal_likelihood",
        },
    ],
    ids=["ella", "ggn_nystrom", "ella-evidence"],
)
def test_a_regression_with_fitted_noise(project, method):
    """Diabetes progression of 442 patients, shipped with scikit-learn."""
    from sklearn.datasets import load_diabetes

    numbers, target = load_diabetes(return_X_y=True)
    columns = {
        "input": pa.array((20 * numbers).tolist(), pa.list_(pa.float64())),
        "target": (target - 152) / 77,
    }
    table = pa.table(columns)
    for name, part in (("train", table[:80]), ("validation", table[80:110]), ("test", table[110:150])):
        pq.write_table(part, f"{name}.parquet")
    settings = {name: {"path": f"{name}.parquet", "columns": {"target": "target"}} for name in SIZES}
    tree = config(
        network={
            "factory": "tiny_networks:mlp",
            "arguments": {"num_inputs": 10, "num_hidden": 8, "num_outputs": 1},
        },
        likelihood={"name": "gaussian"},
        training={"epochs": 30, "batch_size": 20, "learning_rate": 0.02},
        data={
            "train": settings["train"],
            "validation": settings["validation"],
            "evaluation": {"test": settings["test"]},
        },
        method=method,
    )
    write_config(project / "regression.yaml", tree)
    said = good("run", "regression.yaml")
    assert "noise" in computed(said)
    stages = json.loads((project / "store" / "run.json").read_text())["stages"]
    facts = open_store("store").read(stages["posterior"]).facts
    assert 0.1 < facts["noise_variance"] < 1.0  # of targets with variance one, of which the network explains a part
    table = open_store("store").read(stages["predictions-test"]).table("predictions")
    assert np.allclose(np.stack(table["noise"].to_pylist()), facts["noise_variance"])
    assert (np.stack(table["variance"].to_pylist()) > 0).all()
    scores = open_store("store").read(stages["scores"]).table("scores").to_pylist()
    values = {(row["predictor"], row["metric"]): row["value"] for row in scores}
    assert all(np.isfinite(value) for value in values.values())
    assert values["posterior", "rmse"] == values["map", "rmse"]
    good("predict", "store", "--data", "test.parquet", "--out", "p.parquet")
    assert np.allclose(
        np.stack(pq.read_table("p.parquet")["mean"].to_pylist()),
        np.stack(table["mean"].to_pylist()),
        atol=1e-5,
    )


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "good",
    "bad",
    "film",
    "not",
    "very",
    "a",
    "is",
    "this",
]


@pytest.fixture
def tokenizer(project) -> str:
    """Directory of a tokenizer of thirteen words."""
    from transformers import BertTokenizerFast

    (project / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(project / "vocab.txt")).save_pretrained("tokenizer")
    return str(project / "tokenizer")


def _sentences(count: int, start: int) -> pa.Table:
    parts = [("this", "a"), ("film is", "is"), ("", "not", "very"), ("good", "bad")]
    text = [
        " ".join(part[(i // (j + 1)) % len(part)] for j, part in enumerate(parts)) for i in range(start, start + count)
    ]
    return pa.table({"text": text, "label": [int("bad" in each) for each in text]})


def test_a_text_classifier_with_a_tokenizer_from_a_directory(project, tokenizer):
    read = {
        "label": "label",
        "inputs": {"input_ids": {"kind": "text", "column": "text", "tokenizer": tokenizer, "max_length": 8}},
    }
    for name, start in (("train", 0), ("test", 24)):
        pq.write_table(_sentences(24, start), f"{name}.parquet")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    tree = config(
        network={
            "auto": "sequence_classification",
            "config": {
                "model_type": "bert",
                "vocab_size": 13,
                "max_position_embeddings": 8,
                "num_labels": 2,
                **sizes,
            },
        },
        training={"epochs": 2, "batch_size": 12},
        data={
            "train": {"path": "train.parquet", "columns": read},
            "evaluation": {"test": {"path": "test.parquet", "columns": read}},
        },
        method={"name": "ella", "num_landmarks": 16, "num_features": 5},
        tile_weights=512,
    )
    write_config(project / "text.yaml", tree)
    said = good("run", "text.yaml")
    assert re.search(r"accuracy +│ [01]\.\d{4} │", said)
    pq.write_table(_sentences(6, 3).drop_columns(["label"]), "new.parquet")
    good("predict", "store", "--data", "new.parquet", "--out", "p.parquet")
    assert pq.read_table("p.parquet").column_names == [
        "index",
        "map_probabilities",
        "probabilities",
        "mean",
        "variance",
    ]


def test_a_language_model_by_its_last_token_with_chosen_weights(project):
    """Which of eleven tokens comes next; ELLA over the last norm and one projection only."""
    tokens = (torch.arange(40)[:, None] * torch.tensor([3, 5, 2, 1, 7, 4]) + 1) % 11
    for name, part in (("train", tokens[:24]), ("test", tokens[24:])):
        labels = ((part[:, -1] + 1) % 11).tolist()
        pq.write_table(pa.table({"input_ids": part.tolist(), "label": labels}), f"{name}.parquet")
    read = {"label": "label", "inputs": {"input_ids": {"kind": "tokens", "column": "input_ids"}}}
    chosen = ["model.norm.weight", "*.mlp.down_proj.weight"]
    tree = config(
        network={
            "auto": "causal_lm",
            "config": {
                "model_type": "llama",
                "vocab_size": 11,
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 6,
                "max_position_embeddings": 16,
                "tie_word_embeddings": True,
            },
            "output": "last_token",
            "choose": chosen,
        },
        data={
            "train": {"path": "train.parquet", "columns": read},
            "evaluation": {"test": {"path": "test.parquet", "columns": read}},
        },
        method={"name": "ella", "num_landmarks": 30, "num_features": 6},
    )
    write_config(project / "language.yaml", tree)
    good("run", "language.yaml")
    record = json.loads((project / "store" / "run.json").read_text())
    blocks = dict(record["sizes"]["layout"]["blocks"])
    assert blocks == {"model.layers.0.mlp.down_proj.weight": [8, 6], "model.norm.weight": [8]}
    assert record["sizes"]["num_outputs"] == 11
    probabilities = np.stack(
        open_store("store").read(record["stages"]["predictions-test"]).table("predictions")["probabilities"].to_pylist()
    )
    assert probabilities.shape == (16, 11)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


def test_the_last_layer_only(project):
    tree = config()
    tree["network"]["choose"] = "3.*"
    write_config(project / "last.yaml", tree)
    good("run", "last.yaml")
    record = json.loads((project / "store" / "run.json").read_text())
    assert [name for name, _ in record["sizes"]["layout"]["blocks"]] == ["3.weight", "3.bias"]
    # The Jacobian of a last layer is its input: of 7 numbers for each class, bias included.
    import afterfit

    posterior = afterfit.load("store")
    assert posterior.network.layout.num_weights == 3 * 7
    assert posterior.facts["num_features"] == 6
    assert (project / "store" / "report.html").exists()
