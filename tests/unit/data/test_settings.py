import subprocess
import sys

import pytest
from pydantic import ValidationError

from afterfit.data.settings import DataSettings

WRONG = {
    "no origin": ({}, "exactly one origin"),
    "two origins": ({"path": "a.csv", "factory": "a:b"}, "exactly one origin"),
    "hub details without hub": ({"path": "a.csv", "hub_columns": {"a": "b"}}, "need `hub`"),
    "stream without end": ({"hub": "a", "streaming": True}, "max_examples"),
    "factory without function": ({"factory": "package.module"}, "package.module:function"),
    "label and target": ({"path": "a.csv", "columns": {"label": "a", "target": "b"}}, "not both"),
    "raw without shape": (
        {"path": "a.csv", "columns": {"inputs": {"x": {"kind": "image", "column": "i", "decode": "raw"}}}},
        "shape",
    ),
    "means of another width": (
        {"path": "a.csv", "columns": {"inputs": {"x": {"kind": "image", "column": "i", "mean": [0.5]}}}},
        "each of the 3 channels",
    ),
    "role without splits": (
        {"path": "a.csv", "columns": {"target": "y", "target_standardise": {"role": "train"}}},
        "needs `splits`",
    ),
    "half a scale": (
        {"path": "a.csv", "columns": {"target": "y", "target_standardise": {"mean": [1.0]}}},
        "`mean` and `std`",
    ),
    "augmented numbers": ({"path": "a.csv", "augment": {"flip": True}}, "kind image"),
    "unknown key": ({"path": "a.csv", "lable": "y"}, "lable"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be_meant_are_refused(name):
    values, sentence = WRONG[name]
    with pytest.raises(ValidationError, match=sentence):
        DataSettings.model_validate(values)


def test_settings_import_no_torch():
    code = "import sys, afterfit.data.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_field_has_a_description():
    schema = DataSettings.model_json_schema()
    for model in [schema, *schema["$defs"].values()]:
        for name, field in model["properties"].items():
            assert field.get("description"), name
