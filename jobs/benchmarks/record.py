"""The file that every benchmark writes, `results/<name>.json`, and what falls short of its targets."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("afterfit", "torch", "ray", "transformers", "datasets", "accelerate", "numpy", "pyarrow")
"""Whose versions a figure depends on."""

Budget = Literal["hour", "full"]
Target = tuple[Literal["<=", ">="], float]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The figures of one benchmark. Every `adding` is written at once, so an interrupted benchmark goes on.

    A figure made by an earlier commit stays until it is made again: `commit` then names both.
    """

    name: str
    budget: Budget
    targets: Mapping[str, Target]
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str
    date: str  # of the last figure
    figures: Mapping[str, float] = field(default_factory=dict)
    subsets: Mapping[str, str] = field(default_factory=dict)  # group of figures -> the data used
    folder: Path = RESULTS

    def has(self, *figures: str) -> bool:
        """Whether all of these figures are there already."""
        return all(name in self.figures for name in figures)

    def adding(self, figures: Mapping[str, float], **subsets: str) -> Self:
        """The record with more figures, written to its file.

        Args:
            figures: name -> number; a name that is there is replaced.
            **subsets: group of figures -> what data was used.

        Raises:
            ValueError: for a figure that is not a finite number.
        """
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"Not finite: {', '.join(bad)}; a figure is a finite number.")
        whole = replace(self, figures={**self.figures, **figures}, subsets={**self.subsets, **subsets}, date=_today())
        _write(whole.path, whole.as_dict())
        return whole

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"{self.name}.json"

    def as_dict(self) -> dict[str, Any]:
        """As it is written."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "folder")}

    def short(self) -> list[str]:
        """The targets that are missed, or that have no figure."""
        return [name for name, target in self.targets.items() if not _met(self.figures.get(name), target)]

    def table(self) -> Table:
        """Figure, value, target, met; the targets that are missed in red."""
        table = Table(title=f"{self.name} ({self.budget})")
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_column("target", justify="right")
        table.add_column("met")
        for name, (relation, bound) in self.targets.items():
            value = self.figures.get(name)
            met = _met(value, (relation, bound))
            shown = "-" if value is None else f"{value:.4g}"
            word = "yes" if met else "not measured" if value is None else "no"
            table.add_row(name, shown, f"{relation} {bound:.4g}", word, style=None if met else "red")
        return table


def open_record(name: str, budget: Budget, targets: Mapping[str, Target], folder: Path = RESULTS) -> Record:
    """A record to add figures to.

    It goes on from its file where that was made with the same budget, machine and versions; else it is empty.
    """
    fresh = Record(
        name=name,
        budget=budget,
        targets=targets,
        command=shlex.join(["python", *sys.argv]),
        machine=machine(),
        versions=versions(),
        commit=commit(),
        date=_today(),
        folder=folder,
    )
    if not fresh.path.exists():
        return fresh
    earlier = read_record(fresh.path)
    if any(getattr(earlier, what) != getattr(fresh, what) for what in ("budget", "machine", "versions")):
        return fresh
    commits = dict.fromkeys([*earlier.commit.split(", "), fresh.commit]) if earlier.figures else [fresh.commit]
    return replace(fresh, figures=earlier.figures, subsets=earlier.subsets, commit=", ".join(commits))


def read_record(path: Path) -> Record:
    """The record in a file."""
    tree = json.loads(path.read_text())
    targets = {name: tuple(target) for name, target in tree.pop("targets").items()}
    return Record(**tree, targets=targets, name=path.stem, folder=path.parent)


def show(record: Record, console: Console | None = None) -> list[str]:
    """Print the targets and what falls short of them.

    Returns:
        The names that fall short.
    """
    console = console or Console()
    console.print(record.table())
    short = record.short()
    console.print(f"Falls short: {', '.join(short)}." if short else "All targets are met.")
    return short


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, its logical cores, memory in GB, GPU or None."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": _gpu(),
    }


def versions() -> dict[str, str]:
    """Python's and those of the packages that numbers depend on; without what is not installed."""
    return {"python": platform.python_version(), **dict(_installed())}


def commit() -> str:
    """What `git describe` says, with `-dirty` where files were changed; "unknown" outside a clone."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--tags"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


def _met(value: float | None, target: Target) -> bool:
    relation, bound = target
    return value is not None and (value <= bound if relation == "<=" else value >= bound)


def _write(path: Path, tree: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _installed() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the results on disk: all of them, or those named; 1 where a target is missed."""
    names = sys.argv[1:] if arguments is None else arguments
    paths = [RESULTS / f"{name}.json" for name in names] or sorted(RESULTS.glob("*.json"))
    short = [show(read_record(path)) for path in paths]
    return int(any(short))


if __name__ == "__main__":
    sys.exit(main())
