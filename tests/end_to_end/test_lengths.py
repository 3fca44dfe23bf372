"""Texts padded to the longest of a micro-batch: the same fit and predictions, in fewer tokens, bit for bit again."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from afterfit.algebra import micro_batches
from afterfit.data.examples import open_examples
from afterfit.data.settings import DataSettings
from afterfit.engine import Event, Kind, open_engine
from afterfit.errors import ConfigError
from afterfit.plan.config import RunConfig
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.resolve import request_of
from afterfit.seeds import Seed
from afterfit.store.directory import Store, open_store

WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")
SIZES = {"train": 40, "test": 22}
MAX_LENGTH, MICRO_BATCH = 28, 2


def save_tokenizer(folder: Path, **options: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special, **options).save_pretrained(folder)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Texts of 1 to 32 words, and a tokenizer for them."""
    monkeypatch.chdir(tmp_path)
    save_tokenizer(tmp_path / "tokenizer")
    for name, count in SIZES.items():
        drawn = np.random.default_rng(Seed(3).child(name).key())
        lengths = drawn.integers(1, 33, count)
        texts = [" ".join(drawn.choice(WORDS, length)) for length in lengths]
        labels = [text.count("a") % 3 for text in texts]
        pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / f"{name}.parquet")
    return tmp_path


def settings(name: str, pad_to: str, tokenizer: str = "tokenizer") -> dict[str, Any]:
    reader = {"kind": "text", "column": "text", "tokenizer": tokenizer, "max_length": MAX_LENGTH, "pad_to": pad_to}
    return {"path": f"{name}.parquet", "columns": {"label": "label", "inputs": {"input_ids": reader}}}


def config(pad_to: str, **method: Any) -> RunConfig:
    numbers = {"prior_precision": 1.0, "temperature": 1.0, "complement": "prior"}
    network = {"factory": "tiny_networks:bert", "arguments": {"attention": "sdpa", "positions": MAX_LENGTH}}
    return RunConfig.model_validate(
        {
            "name": "texts",
            "network": network,
            "data": {"train": settings("train", pad_to), "evaluation": {"test": settings("test", pad_to)}},
            "method": {**method, **numbers},
            "micro_batch": MICRO_BATCH,
            "num_shards": 2,
        }
    )


def fitted(store: Store, asked: RunConfig, tell=lambda _event: None) -> dict[str, Any]:
    """Stage -> its artifact, with a save at every micro-batch."""
    request = request_of(asked, store)
    with open_engine("inprocess", store, checkpoint_s=0, events=tell) as engine:
        ran = execute(posterior_plan(request), request, engine, store)
    return {name: one.artifact for name, one in ran.items()}


METHODS = [{"name": "ella", "num_landmarks": 30, "num_features": 8}, {"name": "ggn_nystrom", "num_probes": 400}]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_fit_and_predictions_are_those_with_full_padding(project, method):
    full, short = (
        fitted(open_store(str(project / pad_to)), config(pad_to, **method)) for pad_to in ("max_length", "longest")
    )
    left, right = (one["predictions-test"].table("predictions") for one in (full, short))
    assert left["index"].to_pylist() == right["index"].to_pylist() == list(range(SIZES["test"]))
    assert left["label"] == right["label"]
    for column in ("map_probabilities", "mean", "variance"):
        one, other = (np.stack(table[column].to_pylist()) for table in (left, right))
        # float32, sums of other length; a sketch of all directions amplifies rounding by its smallest ones.
        assert np.allclose(one, other, rtol=2e-2 if method["name"] == "ggn_nystrom" else 1e-3, atol=1e-5), column
    assert full["curvature"].tensor("count").sum() == short["curvature"].tensor("count").sum() == SIZES["train"]


def test_an_interrupted_fit_goes_on_to_the_same_bits(project):
    asked = config("longest", **METHODS[0])
    expected = {name: one.digest for name, one in fitted(open_store(str(project / "whole")), asked).items()}
    store = open_store(str(project / "interrupted"))
    for stage in ("curvature/", "features-test/"):

        def ends(event: Event, stage: str = stage) -> None:
            if event.kind == Kind.ADVANCED and event.place.startswith(stage) and event.position == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fitted(store, asked, ends)
        assert any(place.startswith(stage) and "/at/" in place for place in store.places())
    assert {name: one.digest for name, one in fitted(store, asked).items()} == expected


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_as_long_as_its_longest_text_and_holds_the_same_tokens(project, side):
    save_tokenizer(project / side, padding_side=side)
    examples = open_examples(DataSettings.model_validate(settings("train", "longest", side)))
    whole = open_examples(DataSettings.model_validate(settings("train", "max_length", side)))
    planned = micro_batches(examples, range(3, SIZES["train"]), MICRO_BATCH)
    assert sorted(index for part in planned for index in part) == list(range(3, SIZES["train"]))
    assert max(len(part) for part in planned) > MICRO_BATCH
    for part in planned:
        batch, full = examples.batch(part), whole.batch(part)
        size = batch.inputs["input_ids"].shape[1]
        assert len(part) * size <= MICRO_BATCH * MAX_LENGTH
        assert size % 8 == 0 or size == MAX_LENGTH
        for name, ids in full.inputs.items():
            kept = ids[:, :size] if side == "right" else ids[:, -size:]
            assert torch.equal(batch.inputs[name], kept)
            assert int(full.inputs["attention_mask"].sum() - batch.inputs["attention_mask"].sum()) == 0
            assert examples.full_batch(part).inputs[name].equal(ids)


def test_the_setting_is_part_of_the_identity_where_it_changes_bits_and_nowhere_else(project):
    def identity(pad_to: str) -> dict[str, Any]:
        return open_examples(DataSettings.model_validate(settings("train", pad_to))).identity()

    assert identity("longest") != identity("max_length")
    assert "pad_to" not in str(identity("max_length"))


def test_sizes_are_counted_for_texts_of_full_length(project):
    asked = config("longest", **METHODS[0]).model_copy(update={"micro_batch": "auto", "memory_gb": 1e-3})
    full = config("max_length", **METHODS[0]).model_copy(update={"micro_batch": "auto", "memory_gb": 1e-3})
    short, long = (request_of(one, open_store(str(project / "store"))) for one in (asked, full))
    assert short.micro_batch == long.micro_batch
    assert short.forward_flops == long.forward_flops


def test_a_tokenizer_without_a_mask_is_refused(project):
    save_tokenizer(project / "unmasked", model_input_names=["input_ids"])
    with pytest.raises(ConfigError, match="makes no attention mask"):
        open_examples(DataSettings.model_validate(settings("train", "longest", "unmasked"))).batch([0])
