"""A tiny project on disk, as a user has one: data files, a configuration, and the command to run them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from typer.testing import CliRunner, Result

from afterfit import cli
from afterfit.seeds import Seed, normals

NUM_INPUTS, NUM_CLASSES = 5, 3
SIZES = {"train": 36, "validation": 20, "test": 20, "more": 12}


def write_project(folder: Path) -> Path:
    """Data of `SIZES` as Parquet files, and `tiny.yaml`, which fits ELLA to a random network; returns the folder."""
    for name, count in SIZES.items():
        write_rows(folder / f"{name}.parquet", *rows(name, count))
    write_rows(folder / "far.parquet", 5 * rows("far", 12)[0])
    write_config(folder / "tiny.yaml", config())
    return folder


def config(**changed: Any) -> dict[str, Any]:
    """The configuration as a tree, some fields replaced."""
    network = {"num_inputs": NUM_INPUTS, "num_hidden": 6, "num_outputs": NUM_CLASSES}
    tree = {
        "name": "tiny",
        "store": "store",
        "network": {"factory": "tiny_networks:mlp", "arguments": network},
        "data": {
            "train": data("train"),
            "validation": data("validation"),
            "evaluation": {"test": data("test")},
            "out_of_distribution": {"far": {"path": "far.parquet"}},
        },
        "method": {"name": "ella", "num_landmarks": 20, "num_features": 6},
        "num_shards": 2,
        "tile_weights": 24,
    }
    return tree | changed


def data(name: str) -> dict[str, Any]:
    """Settings of one of the files with labels."""
    return {"path": f"{name}.parquet", "columns": {"label": "label"}}


def rows(name: str, count: int) -> tuple[torch.Tensor, list[int]]:
    """Numbers (count, NUM_INPUTS) and a class for each, by their largest number."""
    numbers = normals(Seed(5).child(name), count, NUM_INPUTS)
    return numbers, numbers[:, :NUM_CLASSES].argmax(1).tolist()


def write_rows(path: Path, numbers: torch.Tensor, labels: Sequence[int] | None = None) -> None:
    """The argument `input` of the network, and `label` where there are labels."""
    columns: dict[str, Any] = {"input": pa.array(numbers.tolist(), pa.list_(pa.float32()))}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    pq.write_table(pa.table(columns), path)


def write_config(path: Path, tree: Mapping[str, Any]) -> None:
    """As YAML."""
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False))


def call(*arguments: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli.app, list(arguments))


def good(*arguments: str) -> str:
    """What a command that must succeed says."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments: str, code: int = 2) -> str:
    """The one sentence of a command that must fail."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    return one_sentence(result.stderr)


def one_sentence(stderr: str) -> str:
    """Checks that an error is one line that starts and ends as a sentence does."""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?"))
    assert "unexpected error" not in lines[0]
    return lines[0]


def skipped(stdout: str) -> set[str]:
    """Stages that a run found finished."""
    return set(re.findall(r"│ (\S+) +│.*│ skipped", stdout))


def computed(stdout: str) -> set[str]:
    """Stages that a run did."""
    return set(re.findall(r"│ (\S+) +│.*│ computed", stdout))


def markers(store: Path) -> dict[str, tuple[int, str]]:
    """Place of every finished artifact -> when it was marked, and its digest."""
    from afterfit.store.directory import open_store

    opened = open_store(str(store))
    return {
        str(path.parent.relative_to(store)): (
            path.stat().st_mtime_ns,
            opened.read(str(path.parent.relative_to(store))).digest,
        )
        for path in store.rglob("manifest.json")
    }
