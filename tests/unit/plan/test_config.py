"""A configuration is read strictly: every mistake is one sentence with its line and the nearest name."""

import subprocess
import sys

import pytest

from afterfit.errors import ConfigError
from afterfit.plan.config import parse_config, read_config

GOOD = """\
name: small
network:
  factory: "package.module:build"
data:
  train: {path: train.parquet}
  evaluation:
    test:
      path: test.parquet
      columns:
        label: digit
        inputs:
          x: {kind: numeric, columns: [a, b]}
method:
  name: ella
  num_features: 10
memory_gb: 1.5
"""


def mistake(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, "c.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?", ")"))
    return message


def test_a_good_file_is_read_with_its_defaults():
    config = parse_config(GOOD)
    assert config.name == "small"
    assert config.where == "runs/small"
    assert config.memory_gb == 1.5
    assert config.likelihood.name == "categorical"
    assert config.method == {"name": "ella", "num_features": 10}
    assert config.data.evaluation["test"].columns.label == "digit"


def test_an_unknown_key_at_the_top_names_its_line_and_the_nearest_field():
    message = mistake(GOOD.replace("memory_gb", "memory_gbs"))
    assert message.startswith("c.yaml:16: ")
    assert "'memory_gbs'" in message
    assert "did you mean 'memory_gb'?" in message


def test_an_unknown_key_inside_names_its_line_and_the_nearest_field_of_that_record():
    message = mistake(GOOD.replace("  factory:", "  factori:"))
    assert message.startswith("c.yaml:3: ")
    assert "'network.factori'" in message
    assert "did you mean 'factory'?" in message


def test_an_unknown_key_under_a_name_chosen_by_the_user_is_still_compared_with_the_right_record():
    message = mistake(GOOD.replace("      columns:\n", "      colums:\n"))
    assert message.startswith("c.yaml:9: ")
    assert "did you mean 'columns'?" in message


def test_an_unknown_key_like_no_other_lists_what_is_known():
    message = mistake(GOOD + "zzz: 1\n")
    assert message.startswith("c.yaml:17: ")
    assert "known here: " in message
    assert "num_shards" in message


def test_a_value_of_the_wrong_type_names_its_line():
    message = mistake(GOOD.replace("memory_gb: 1.5", "memory_gb: much"))
    assert message.startswith("c.yaml:16: memory_gb: ")
    assert "number" in message


def test_a_value_out_of_range_names_its_line():
    message = mistake(GOOD.replace("memory_gb: 1.5", "memory_gb: -1"))
    assert message.startswith("c.yaml:16: memory_gb: ")
    assert "greater than 0" in message


def test_a_missing_field_is_named_in_full():
    message = mistake(GOOD.replace("  train: {path: train.parquet}\n", ""))
    assert "'data.train' is missing" in message


def test_a_value_that_fits_no_member_of_a_union_is_said_readably():
    message = mistake(GOOD + "micro_batch: some\n")
    assert message.startswith("c.yaml:17: micro_batch: ")
    assert "literal" not in message.split(": ")[1]
    assert "constrained-int" not in message


def test_an_unknown_kind_of_column_names_the_kinds():
    message = mistake(GOOD.replace("kind: numeric", "kind: numeral"))
    assert message.startswith("c.yaml:12: ")
    assert "numeral" in message
    assert "'numeric'" in message


def test_an_unknown_key_inside_a_kind_of_column_names_its_nearest_field():
    message = mistake(GOOD.replace("columns: [a, b]", "columns: [a, b], standardize: {role: train}"))
    assert message.startswith("c.yaml:12: ")
    assert "did you mean 'standardise'?" in message


def test_two_origins_of_one_data_set_are_refused_with_the_choices():
    message = mistake(GOOD.replace("{path: train.parquet}", '{path: train.parquet, factory: "m:f"}'))
    assert message.startswith("c.yaml:5: ")
    assert "exactly one origin" in message


def test_what_is_not_yaml_names_its_line():
    message = mistake("name: small\nnetwork: [\n")
    assert message.startswith("c.yaml:")
    assert "not YAML" in message


@pytest.mark.parametrize("text", ["", "just words", "- a list"])
def test_what_is_not_a_mapping_is_refused(text):
    assert "a configuration is a mapping" in mistake(text)


def test_set_reaches_into_records_and_mappings_and_makes_those_that_are_not_there():
    config = parse_config(GOOD, ["method.num_features=20", "prediction.link=probit", "data.evaluation.test.take=7"])
    assert config.method["num_features"] == 20
    assert config.prediction.link == "probit"
    assert config.data.evaluation["test"].take == 7


def test_set_takes_values_in_yaml():
    config = parse_config(GOOD, ['network.choose=["a.*", "b.*"]', "store=null"])
    assert config.network.choose == ["a.*", "b.*"]
    assert config.store is None


def test_an_unknown_key_that_was_set_has_no_line_and_a_nearest_name():
    message = mistake(GOOD, "memry_gb=1")
    assert message.startswith("c.yaml: ")
    assert "did you mean 'memory_gb'?" in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("memory_gb", "has no value"),
        ("=1", "has no value"),
        ("memory_gb.x=1", "'memory_gb' is not a mapping"),
        ("memory_gb=[", "not YAML"),
    ],
)
def test_a_set_that_cannot_be_done_is_said(override, says):
    message = mistake(GOOD, override)
    assert f"--set {override}" in message
    assert says in message


def test_several_mistakes_are_counted():
    assert mistake(GOOD.replace("memory_gb: 1.5", "memory_gb: much") + "zzz: 1\n").endswith("(1 more)")


def test_a_missing_file_is_named(tmp_path):
    path = str(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read_config(path)


def test_reading_a_configuration_imports_no_torch():
    code = "import sys, afterfit.plan.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_arithmetic_of_rows_is_plain_unless_it_is_set():
    assert parse_config(GOOD).rows.changed == {}
    assert parse_config(GOOD, ["rows.autocast=bfloat16"]).rows.changed == {"autocast": "bfloat16"}
    assert parse_config(GOOD, ["rows.compiled=true"]).rows.changed == {"compiled": True}
    assert "did you mean 'autocast'?" in mistake(GOOD, "rows.autocst=bfloat16")
    assert "rows.autocast: input should be 'bfloat16' or 'float16'" in mistake(GOOD, "rows.autocast=float8")
