import pickle

import pytest
import torch
from pyarrow import parquet

from afterfit.data.examples import open_examples
from afterfit.data.settings import DataSettings
from afterfit.errors import ConfigError, DataError

LENGTH = 12


def save_tokenizer(sentences, folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(sentences, trainers.WordLevelTrainer(vocab_size=500, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return words


def opened(path, folder, column: str | list[str] = "sentence"):
    reader = {"kind": "text", "column": column, "tokenizer": str(folder), "max_length": LENGTH}
    values = {"path": str(path), "columns": {"label": "label", "inputs": {"input_ids": reader}}}
    return open_examples(DataSettings.model_validate(values))


@pytest.fixture
def sst2(shared, tmp_path):
    path = shared("sst2/train.parquet")
    sentences = parquet.read_table(path)["sentence"].to_pylist()
    return path, tmp_path / "tokenizer", sentences, save_tokenizer(sentences[:1000], tmp_path / "tokenizer")


def test_sentences_become_padded_ids_with_a_mask(sst2):
    path, folder, sentences, words = sst2
    examples = opened(path, folder)
    assert examples.num_examples == 6920
    order = [6919, 0, 17]
    batch = examples.batch(order)
    assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    for row, index in enumerate(order):
        ids = words.encode(sentences[index], add_special_tokens=False).ids[: LENGTH - 2]
        expected = [2, *ids, 3]
        padding = [0] * (LENGTH - len(expected))
        assert batch.inputs["input_ids"][row].tolist() == expected + padding
        assert batch.inputs["attention_mask"][row].tolist() == [1] * len(expected) + padding


def test_ids_do_not_depend_on_the_batch_and_survive_pickling(sst2):
    examples = opened(*sst2[:2])
    together = examples.batch([5, 3]).inputs
    again = pickle.loads(pickle.dumps(examples)).batch([5, 3]).inputs
    for name, values in together.items():
        assert torch.equal(values, torch.cat([examples.batch([index]).inputs[name] for index in (5, 3)]))
        assert torch.equal(values, again[name])


def test_a_pair_of_columns_is_one_example_with_types(sst2):
    path, folder, sentences, _ = sst2
    pair = opened(path, folder, ["sentence", "sentence"]).batch([3]).inputs
    assert sorted(set(pair["token_type_ids"][0].tolist())) == [0, 1]
    assert len(sentences[3])


def test_the_identity_holds_the_tokenizer_and_not_where_it_was(sst2, tmp_path):
    path, folder, sentences, _ = sst2
    save_tokenizer(sentences[:1000], tmp_path / "same")
    save_tokenizer(sentences[1000:1100], tmp_path / "other")
    here = opened(path, folder)
    here.batch([0])
    assert here.identity() == opened(path, tmp_path / "same").identity()
    assert here.identity() != opened(path, tmp_path / "other").identity()


def test_a_tokenizer_that_is_not_there_is_told(sst2, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer .* does not load"):
        opened(sst2[0], tmp_path / "none").batch([0])


def test_a_row_without_text_is_named(tmp_path, sst2):
    import pyarrow as pa

    parquet.write_table(pa.table({"sentence": ["good", None], "label": [1, 0]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"holds no text in row 1 of 'data.parquet'"):
        opened(tmp_path / "data.parquet", sst2[1]).batch([0, 1])
