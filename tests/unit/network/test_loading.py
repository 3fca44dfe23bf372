"""Networks from files, configurations and factories, and what is said when they do not load."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from afterfit.errors import AfterfitError, ConfigError, NetworkError
from afterfit.network.identity import identity
from afterfit.network.loading import load_module, load_network, put_state
from afterfit.network.settings import AUTO_CLASSES, NetworkSettings

VIT = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": 3,
}
RESNET = "afterfit.network.cifar_resnet:resnet20"


def vit(**fields) -> NetworkSettings:
    return NetworkSettings(config={**VIT, **fields.pop("config", {})}, **fields)


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """A directory that `save_pretrained` wrote, below $AFTERFIT_MODELS, without a way to the hub."""
    monkeypatch.setenv("AFTERFIT_MODELS", str(tmp_path))
    load_module(vit(seed=5)).save_pretrained(tmp_path / "small-vit")
    return tmp_path / "small-vit"


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_random_weights_are_named_by_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_module(vit(seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_weights(first, load_module(vit(seed=1)))
    assert not same_weights(first, load_module(vit(seed=2)))


def test_a_loaded_module_is_frozen_in_eval_mode_and_of_the_type_asked_for():
    module = load_module(vit(dtype="float64"))
    assert not any(part.training for part in module.modules())
    assert not any(weight.requires_grad for weight in module.parameters())
    network = load_network(vit(dtype="float64", choose="classifier.*"))
    assert network.dtype == torch.float64
    assert [block.name for block in network.layout.blocks] == ["classifier.weight", "classifier.bias"]
    assert network({"pixel_values": torch.zeros(2, 1, 8, 8)}).shape == (2, 3)


def test_a_directory_is_found_below_the_models_folder_and_loads_its_weights(saved):
    module = load_module(NetworkSettings(path="small-vit"))
    assert same_weights(module, load_module(vit(seed=5)))


def test_a_new_head_must_be_asked_for_and_is_then_drawn_by_the_seed(saved):
    wider = {"path": "small-vit", "config": {"num_labels": 7}}
    with pytest.raises(AfterfitError, match="classifier"):
        load_module(NetworkSettings(**wider))
    module = load_module(NetworkSettings(**wider, fresh="classifier.*", seed=1))
    assert module.get_parameter("classifier.weight").shape == (7, 8)
    assert same_weights(module, load_module(NetworkSettings(**wider, fresh="classifier.*", seed=1)))
    assert not same_weights(module, load_module(NetworkSettings(**wider, fresh="classifier.*", seed=2)))


def test_identity_has_digests_and_no_path_and_changes_with_what_matters(saved):
    settings = NetworkSettings(path=str(saved))
    record = identity(settings)
    assert str(saved.parent) not in json.dumps(record)
    assert record == identity(NetworkSettings(path="small-vit", choose="classifier.*"))
    assert {file["name"] for file in record["files"]} == {"config.json", "model.safetensors"}
    assert record != identity(settings.model_copy(update={"dtype": "float64"}))
    (saved / "model.safetensors").write_bytes(b"other")
    assert record != identity(settings)
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert identity(NetworkSettings(hub="a/b", revision=commit))["revision"] == commit


def test_a_state_goes_into_a_copy_and_a_foreign_one_is_refused():
    module = load_module(vit())
    state = {"classifier.bias": torch.ones(3)}
    changed = put_state(module, state)
    assert torch.equal(changed.get_parameter("classifier.bias"), torch.ones(3))
    assert torch.equal(module.get_parameter("classifier.bias"), torch.zeros(3))
    assert put_state(module, None) is module
    assert torch.equal(load_network(vit(), state).weights["classifier.bias"], torch.ones(3))
    with pytest.raises(NetworkError, match=r"'head\.bias'"):
        load_network(vit(), {"head.bias": torch.ones(3)})
    with pytest.raises(NetworkError, match=re.escape("shape (4,)")):
        load_network(vit(), {"classifier.bias": torch.ones(4)})


def test_of_tied_weights_one_name_in_the_file_is_enough(tmp_path):
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = {
        "model_type": "llama",
        "vocab_size": 11,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        **tiny,
    }
    module = load_module(NetworkSettings(auto="causal_lm", config=llama, seed=3))
    file = tmp_path / "tied.safetensors"
    save_file({name: weight.contiguous() for name, weight in module.named_parameters()}, file)
    again = load_module(NetworkSettings(auto="causal_lm", config=llama, weights=str(file)))
    assert same_weights(module, again)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"drop": ["conv1.weight", "bn1.bias"]},
            "lacks 'bn1.bias', 'conv1.weight'|lacks 'conv1.weight', 'bn1.bias'",
        ),
        ({"add": ["extra"]}, "'extra', which the network has not"),
    ],
)
def test_weight_names_that_do_not_fit_are_named(tmp_path, change, sentence):
    state = load_module(NetworkSettings(factory=RESNET)).state_dict()
    state = {name: value for name, value in state.items() if name not in change.get("drop", [])}
    state |= {name: torch.zeros(1) for name in change.get("add", [])}
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    with pytest.raises(NetworkError, match=sentence):
        load_module(NetworkSettings(factory=RESNET, weights=str(file)))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(NetworkError, match=r"broken\.safetensors"):
        load_module(NetworkSettings(factory=RESNET, weights=str(tmp_path / "broken.safetensors")))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"factory": "afterfit.network.cifar_resnet:resnet21"}, "resnet21"),
        ({"factory": "no_such_package.module:make"}, "no_such_package"),
        ({"factory": RESNET, "arguments": {"labels": 3}}, "labels"),
        ({"factory": "afterfit.seeds:Seed", "arguments": {"root": 1}}, "torch.nn.Module"),
        ({"factory": "builtins:dict"}, "does not take"),
        ({"factory": RESNET, "weights": "nowhere.safetensors"}, "nowhere.safetensors.*AFTERFIT_MODELS"),
        ({"path": "nowhere"}, "There is no directory 'nowhere'"),
        ({"config": {**VIT, "model_type": "vti"}}, "Did you mean 'vit'"),
        ({"config": {**VIT, "hiden_size": 3}}, "Did you mean 'hidden_size'"),
        ({"config": VIT, "auto": "causal_lm"}, "causal_lm"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_a_sentence(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_module(NetworkSettings(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hub": "a/b", "factory": RESNET},
        {"hub": "./a/b"},
        {"path": "x", "config": VIT},
        {"factory": "no_colon"},
        {"factory": RESNET, "config": {"num_labels": 3}},
        {"config": VIT, "arguments": {"a": 1}},
        {"path": "x", "weights": "y.safetensors"},
        {"config": VIT, "fresh": "*"},
        {"path": "x", "revision": "main"},
    ],
)
def test_settings_that_contradict_themselves_are_refused(fields):
    with pytest.raises(ValidationError):
        NetworkSettings(**fields)


def test_every_task_has_its_class():
    import transformers

    assert set(get_args(NetworkSettings.model_fields["auto"].annotation)) == set(AUTO_CLASSES)
    assert all(hasattr(transformers, name) for name in AUTO_CLASSES.values())


def test_settings_of_networks_and_training_import_no_torch():
    code = "import sys, afterfit.network.settings, afterfit.training.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
