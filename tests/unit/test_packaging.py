"""The root of the repository: what is declared, pinned, and promised in the README."""

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import afterfit
from afterfit.posterior.gaussian import Gaussian

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "configs",
    "constraints.txt",
    "infra",
    "jobs",
    "pipeline",
    "pyproject.toml",
    "tests",
}
GUIDES = ("README.md", "CONTRIBUTING.md", "infra/README.md")


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pins}


def _declared() -> list[Requirement]:
    project = _project()
    return [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]]


def _requirements(name: str) -> list[str]:
    """What an installed package asks for; one for another platform is not installed and asks for nothing."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def test_every_dependency_is_pinned_to_a_version_in_its_range() -> None:
    pins = _pins()

    for requirement in _declared():
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} does not admit {pinned}"


def test_the_pins_are_complete_down_to_the_last_dependency() -> None:
    pins, missing = _pins(), set()
    waiting, seen = _declared(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in pins:
            missing.add(name)
        for text in _requirements(name) if name in pins else []:
            needed = Requirement(text)
            extras = {"", *requirement.extras}
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
            if wanted and (name, text) not in seen:
                seen.add((name, text))
                waiting.append(needed)

    # torch's own wheel index builds without CUDA; the package index's wheel brings what it needs itself.
    assert {name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))} == set()


def test_the_pins_bring_no_cuda() -> None:
    heavy = re.compile(r"nvidia-|cuda|cupy|triton|torchvision|torchaudio")

    assert _pins()["torch"] == "2.13.0"
    assert [name for name in _pins() if heavy.match(name)] == []


def test_the_top_level_holds_what_newcomers_expect_and_nothing_else() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone, so what is ignored is not known")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    entries = {Path(line).parts[0] for line in listed.stdout.splitlines() if (ROOT / line).exists()}

    assert {entry for entry in entries if not entry.startswith(".")} == TOP_LEVEL


def test_the_licence_is_the_one_that_is_declared() -> None:
    text = (ROOT / "LICENSE").read_text()

    assert _project()["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def _code(guide: str) -> list[str]:
    """The lines of its blocks of code, and what stands between backticks."""
    text = (ROOT / guide).read_text()
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4,}(\S.*)$", rest, re.MULTILINE)
    return [
        *(line.strip() for fence in fences for line in fence.splitlines()),
        *indented,
        *re.findall(r"`([^`\n]+)`", rest),
    ]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_path_that_a_guide_names_exists(guide: str) -> None:
    text = (ROOT / guide).read_text()
    links = [(ROOT / guide).parent / link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    tops = "|".join(re.escape(name) for name in sorted(TOP_LEVEL) if "." not in name)
    words = [ROOT / word for word in re.findall(rf"(?<![\w./<-])(?:{tops})/[\w./*-]*[\w/]", "\n".join(_code(guide)))]

    assert links or words
    named = [path for path in [*links, *words] if "NAME" not in path.name]
    assert [str(path) for path in named if not path.exists()] == []


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_that_a_guide_names_exists(guide: str) -> None:
    from afterfit.cli import app

    commands = set(typer.main.get_group(app).commands)
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = [line.removeprefix("$ ").removeprefix(".venv/bin/") for line in _code(guide)]
    used = {line.split()[1] for line in told if re.match(r"afterfit [a-z]+", line)}
    made = {
        word
        for line in told
        if line.startswith("make ")
        for word in shlex.split(line, comments=True)[1:]
        if "=" not in word
    }

    assert used <= commands
    assert made <= targets


def test_the_readme_tells_the_two_commands_that_do_all_the_set_up() -> None:
    assert {"make quickstart", "make test"} <= set(_code("README.md"))


def _fenced(guide: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / guide).read_text(), re.DOTALL | re.MULTILINE)


def test_the_configuration_in_the_readme_is_a_valid_one() -> None:
    from afterfit.plan.config import parse_config
    from afterfit.plan.resolve import method_named

    (example,) = _fenced("README.md", "yaml")
    config = parse_config(example)

    assert method_named(config.method).name == "ella"


def test_the_python_in_the_readme_uses_what_the_package_gives() -> None:
    example = _fenced("README.md", "python")[0]
    calls = {ast.unparse(node.func): node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)}
    given = {
        "afterfit.fit": afterfit.fit,
        "afterfit.load": afterfit.load,
        "afterfit.Ella": afterfit.Ella,
        "posterior.predict": afterfit.Posterior.predict,
        "posterior.save": afterfit.Posterior.save,
        "outputs.probabilities": Gaussian.probabilities,
    }

    assert set(calls) == set(given)
    for name, call in calls.items():
        named = {word.arg: None for word in call.keywords if word.arg is not None}
        itself = [] if name.startswith("afterfit.") else [None]
        inspect.signature(given[name]).bind(*itself, *call.args, **named)


def test_the_draws_in_the_readme_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example, names = python_with("afterfit.NullSpace"), given_names()

    exec(example, names)

    assert names["posterior"].facts["residual"] <= 1e-7
    assert names["posterior"].facts["num_draws"] == 32
    assert names["outputs"].disagreement.shape == (6,)


def test_the_variational_fit_in_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example, names = python_with("afterfit.Slang"), given_names()

    exec(example, names)

    assert names["posterior"].facts["elbo"] < 0
    assert names["posterior"].facts["num_draws"] == 32


def test_the_noise_in_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example, names = python_with("afterfit.VariationalDropout"), given_names()

    exec(example, names)

    assert 0 <= names["posterior"].facts["sparsity"] <= 1
    assert names["posterior"].facts["num_draws"] == 8


def test_the_variances_in_the_readme_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example, names = python_with("afterfit.HessianFree"), given_names()

    exec(example, names)

    assert names["posterior"].facts["decades"] >= 1
    assert names["outputs"].covariance.shape == (6, 2, 2)


def python_with(call: str) -> str:
    """The one example that has a call."""
    (found,) = [example for example in _fenced("README.md", "python") if f"{call}(" in example]
    return found


def given_names() -> dict[str, Any]:
    """What the text has before."""
    torch.manual_seed(0)
    images = torch.randn(6, 3)
    items = [{"pixel_values": image, "label": number % 2} for number, image in enumerate(images)]
    return {"afterfit": afterfit, "network": Pixels().eval(), "dataset": items, "images": images}


class Pixels(torch.nn.Module):
    """A small network that takes what the text gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2)."""
        return self.layers(pixel_values)


def test_the_curvature_in_the_readme_runs_as_it_stands() -> None:
    *_, example = _fenced("README.md", "python")
    network, images = torch.nn.Linear(3, 2).eval(), torch.randn(4, 3)
    columns = torch.randn(8, 5)
    names = {
        "network": network,
        "batches": [{"input": images}],
        "columns": columns,
        "inputs": {"input": images},
        "others": {"input": images[:2]},
    }

    exec(example, names)

    assert names["image"].shape == columns.shape
    assert names["diagonal"].shape == (8,)
    assert names["kernel"].shape == (8, 4)
