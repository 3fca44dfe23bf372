"""The entrypoints of `ray job submit` ask the command line for the right thing."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def _job(name: str) -> ModuleType:
    spec = spec_from_file_location(f"job_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fit", ["--set", "method.num_features=5", "a.yaml", "--store=s3://b/x", "--workers", "3"]),
        ("predict", ["s3://b/x", "--data", "new", "--out", "o.parquet"]),
    ],
)
def test_a_job_is_the_command_on_the_cluster_it_runs_on(
    monkeypatch: pytest.MonkeyPatch, name: str, given: list[str]
) -> None:
    heard: list[list[str]] = []
    job = _job(name)
    monkeypatch.setattr(job, "app", lambda arguments, **_: heard.append(arguments))

    job.main(given)

    command = {"fit": "run", "predict": "predict"}[name]
    assert heard == [[command, "--engine", "ray", "--address", "auto", *given]]


def test_a_fit_without_a_store_is_refused_since_the_default_one_would_be_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        _job("fit").main(["a.yaml"])

    assert ended.value.code == 2
    assert "--store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "word"),
    [
        ("fit", ["missing.yaml", "--store", "s"], "missing.yaml"),
        ("predict", ["no-such-store", "--data", "new", "--out", "o.parquet"], "no-such-store"),
    ],
)
def test_bad_input_of_a_job_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    given: list[str],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as ended:
        _job(name).main(given)

    assert ended.value.code == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
