"""What benchmarks write, and how they go on."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import record
from record import Record, Target, open_record, read_record, show

TARGETS: dict[str, Target] = {"nll": ("<=", 0.25), "auroc": (">=", 0.8)}


def _opened(folder: Path) -> Record:
    return open_record("toy", "hour", TARGETS, folder)


def test_a_result_file_has_the_one_shape_of_all_benchmarks(tmp_path: Path) -> None:
    _opened(tmp_path).adding({"nll": 0.3, "digests_equal": True}, toy="8 of 8 examples")

    tree = json.loads((tmp_path / "toy.json").read_text())

    assert set(tree) == {
        "figures",
        "targets",
        "command",
        "machine",
        "versions",
        "commit",
        "budget",
        "subsets",
        "date",
    }
    assert tree["figures"] == {"nll": 0.3, "digests_equal": 1}
    assert tree["targets"] == {"nll": ["<=", 0.25], "auroc": [">=", 0.8]}
    assert set(tree["machine"]) == {"cpu", "cores", "memory_gb", "gpu"}
    assert {"python", "torch", "ray"} <= set(tree["versions"])
    assert tree["subsets"] == {"toy": "8 of 8 examples"}
    assert len(tree["date"]) == len("2026-01-31")


def test_an_interrupted_benchmark_goes_on_from_its_file(tmp_path: Path) -> None:
    _opened(tmp_path).adding({"nll": 0.3}, first="the first part")

    again = _opened(tmp_path)

    assert again.has("nll")
    assert not again.has("nll", "auroc")
    whole = again.adding({"auroc": 0.9}, second="the second part")
    assert whole.figures == {"nll": 0.3, "auroc": 0.9}
    assert read_record(whole.path) == whole


def test_a_figure_made_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    _opened(tmp_path).adding({"nll": 0.3})

    assert _opened(tmp_path).adding({"nll": 0.2}).figures == {"nll": 0.2}


@pytest.mark.parametrize("what", ["machine", "versions"])
def test_figures_of_another_machine_or_other_versions_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    _opened(tmp_path).adding({"nll": 0.3})
    monkeypatch.setattr(record, what, lambda: {"cpu": "another"})

    assert _opened(tmp_path).figures == {}


def test_figures_of_another_budget_are_not_mixed_in(tmp_path: Path) -> None:
    _opened(tmp_path).adding({"nll": 0.3})

    assert open_record("toy", "full", TARGETS, tmp_path).figures == {}


def test_figures_of_two_commits_name_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "commit", lambda: "one")
    _opened(tmp_path).adding({"nll": 0.3})
    monkeypatch.setattr(record, "commit", lambda: "two")
    _opened(tmp_path).adding({"auroc": 0.9})

    assert _opened(tmp_path).commit == "one, two"


def test_a_figure_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nll"):
        _opened(tmp_path).adding({"nll": float("nan")})

    assert list(tmp_path.iterdir()) == []


def test_what_falls_short_is_shown_whether_missed_or_never_measured(tmp_path: Path) -> None:
    told = io.StringIO()
    partial = _opened(tmp_path).adding({"nll": 0.3})

    assert show(partial, Console(file=told, width=100)) == ["nll", "auroc"]
    assert "not measured" in told.getvalue()
    assert "0.3" in told.getvalue()
    assert show(replace(partial, figures={"nll": 0.25, "auroc": 0.8}), Console(file=told)) == []
