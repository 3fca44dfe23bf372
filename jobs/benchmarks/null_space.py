"""The null-space posterior on real networks beside the network alone, ELLA and isotropic noise; residuals and cost.

    python jobs/benchmarks/null_space.py [--budget hour|full] [--only mnist]

Figures `<task>_<method>_{train_accuracy,nll,ece,ood_auroc}`. Train accuracy is that of single draws on the examples
that the predictive kernel protects, linearised: of null-space draws and noise at the scale |theta| / sqrt(rows),
which maximises the linearised evidence, and of ELLA's own posterior. The others are of new data, at the scale at
which no protected example's loss changes by more than .1 nats in the plain network. OOD AUROC is by the variance of
the softmax over draws, and of the network alone by the entropy. All predictions are linearised, and made here from
stored draws. The text task needs a pretrained encoder: see `ENCODER` in null_space_tasks.py.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final, get_args

import torch

from afterfit.methods.projection.protected import Kernel, Protected
from afterfit.network.likelihoods import Categorical
from afterfit.plan.bench import Bench
from afterfit.plan.config import RunConfig
from afterfit.plan.predictions import read_posterior
from afterfit.plan.tuning import Features
from afterfit.seeds import Seed
from null_space_tasks import (
    COMPARED_IN_FULL,
    NUM_DRAWS,
    SEED,
    SMOOTH_PROTECTED,
    TASKS,
    Fit,
    Solver,
    Task,
    fit_ella,
    fit_null_space,
    fit_smooth,
    fitted,
    protected_by,
)
from record import Budget, Record, Target, open_record, show
from weight_draws import (
    Draws,
    Linear,
    PlainLosses,
    isotropic,
    largest_scale,
    linear_outputs,
    point_scores,
    scores,
    slope,
    weights_length,
)

NAME = "null_space"
STORE = Path(__file__).parents[2] / "runs/benchmarks" / NAME
KERNELS: Final[tuple[Kernel, ...]] = ("predictive", "loss")
METRICS = ("train_accuracy", "nll", "ece", "ood_auroc")
LOSS_CHANGE = 0.1
"""Nats."""
NUM_LOOKED = 4
"""Draws that a scale is chosen by."""
FIRST_LENGTH = 0.1
"""Part of |theta| that noise is tried at first."""
ELLA_DRAWS = 128
COURSE = (5, 10, 20, 40, 80)
"""Passes after which the residual of an iterative solver is recorded."""
RELATIVE_LENGTHS = (0.02, 0.1)
"""|delta| / |theta| between which the slope of the loss change is taken."""
SLOPE_TASK = "mnist"
COST_HIDDEN = (512, 1024, 2048)
COST_DRAWS = (16, 64, 256)
COST_EXAMPLES = 50
TARGETS: Mapping[str, Target] = {
    **{f"{task.name}_residual_exact": ("<=", 1e-7) for task in TASKS},
    "mnist_residual_cg": ("<=", 1e-4),
    "mnist_passes_cg": ("<=", 100.0),
    "slope_projected": (">=", 1.8),
    "slope_isotropic": ("<=", 1.3),
    **{f"{task.name}_null_space_predictive_train_accuracy_lost": ("<=", 0.002) for task in TASKS},
    **{f"{task.name}_isotropic_train_accuracy_lost": (">=", 0.15) for task in TASKS},
    **{f"{task.name}_null_space_{kernel}_nll_above_map": ("<=", 0.005) for task in TASKS for kernel in KERNELS},
    **{f"{task.name}_null_space_loss_ood_auroc_above_map": (">=", 0.0) for task in TASKS},
    **{f"{task.name}_null_space_loss_ood_auroc_above_isotropic": (">=", 0.0) for task in TASKS},
    "slope_cost_in_weights": ("<=", 1.15),
    "slope_cost_in_draws": ("<=", 1.15),
}
Figures = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """A task with its trained network; every method is measured on the same examples."""

    task: Task
    budget: Budget
    store: Path

    @cached_property
    def ella(self) -> Fit:
        """ELLA's fit, which trains the network."""
        return fit_ella(self.task, self.budget, self.store)

    @property
    def bench(self) -> Bench:
        """The network and all data."""
        return self.ella.bench

    def protected(self, kernel: Kernel) -> Protected:
        """Those of a kernel."""
        return protected_by(self.task, self.budget, kernel, self.bench, Categorical())

    def train(self, draws: Draws) -> Linear:
        """Outputs on the examples that the predictive kernel protects."""
        indexes = self.protected("predictive").indexes(self.bench, 0, self.bench.num_examples("train"))
        return linear_outputs(self.bench, "train", draws, indexes)

    @property
    def evidence_scale(self) -> float:
        """|theta| / sqrt(rows) of the predictive kernel, whose rows are as good as independent."""
        return weights_length(self.bench.network) / math.sqrt(self.protected("predictive").num_rows(self.bench))

    def losses(self, draws: Draws, kernel: Kernel = "predictive") -> PlainLosses:
        """Of the protected examples."""
        return PlainLosses(self.bench, self.protected(kernel), draws, NUM_LOOKED)

    def null_space(self, kernel: Kernel) -> Fit:
        """The fit by the exact solver."""
        count = self.task.protected[self.budget][kernel]
        return fit_null_space(self.task, self.budget, self.store, kernel, num_protected=count)

    def drawn_figures(self, method: str, draws: Draws, scale: float) -> Figures:
        """All four of weight draws, and the scale."""
        inside, outside = (linear_outputs(self.bench, role, draws) for role in ("test", self.task.outside))
        made = {"train_accuracy": self.train(draws).accuracy(self.evidence_scale), **scores(inside, outside, scale)}
        return self._named(method, {**made, "scale": scale})

    def network_figures(self) -> Figures:
        """Of the network alone and of ELLA, both from ELLA's features."""
        posterior = read_posterior(self.ella.artifact("posterior"))

        def drawn(features: Features) -> Linear:
            outputs = features.outputs(posterior, Categorical())
            draws_SNC = outputs.sampler(Seed(SEED, ("benchmark",)), ELLA_DRAWS)(0, ELLA_DRAWS)
            return Linear(features.mean_NC, (draws_SNC - features.mean_NC).permute(1, 2, 0), features.targets)

        train = self.train(self.ella.artifact("basis").tiles("basis"))
        places = [Features.of(self.ella.artifact(f"features-{role}")) for role in ("test", self.task.outside)]
        inside, outside = map(drawn, places)
        index_N = self.protected("predictive").indexes(self.bench, 0, self.bench.num_examples("train"))
        on_train = drawn(Features(train.mean_NC, train.moved_NCS, None, train.targets, torch.tensor(list(index_N))))
        point = {"train_accuracy": on_train.accuracy(0.0), **point_scores(inside, outside)}
        ella = {"train_accuracy": on_train.accuracy(1.0), **scores(inside, outside, 1.0)}
        facts = {"accuracy": inside.accuracy(0.0), "training_seconds": self.ella.seconds("point_estimate")}
        return self._named("map", {**point, **facts}) | self._named("ella", ella)

    def isotropic_figures(self) -> Figures:
        """Of normal noise of all weights."""
        draws = isotropic(self.bench.layout, NUM_DRAWS, SEED)
        losses = self.losses(draws)
        start = FIRST_LENGTH / losses.relative_length(1.0)
        scale = largest_scale(losses.largest_change, LOSS_CHANGE, start)
        relative = {f"{self.task.name}_isotropic_relative_length": losses.relative_length(scale)}
        return self.drawn_figures("isotropic", draws, scale) | relative

    def null_space_figures(self, kernel: Kernel) -> Figures:
        """Of a kernel's draws, with its certificate and cost where that is the predictive one's."""
        fit = self.null_space(kernel)
        figures = self.drawn_figures(f"null_space_{kernel}", fit.draws, fit.scale)
        figures |= self._named(f"null_space_{kernel}", self._certified(fit))
        if kernel == "predictive":
            figures |= self._solver_figures("exact", fit)
        return figures

    def solver_figures(self, solver: Solver) -> Figures:
        """Residual, passes and seconds of an iterative solver, on few examples of the predictive kernel."""
        count = COMPARED_IN_FULL if self.budget == "full" else self.task.compared
        assert count is not None
        fit = fit_null_space(self.task, self.budget, self.store, "predictive", num_protected=count, solver=solver)
        return self._solver_figures(solver, fit)

    def slope_figures(self) -> Figures:
        """How the largest loss change in the plain network grows with the length of draws.

        Of the smooth LeNet, since a change of the second order is one of a network that has a second order: between two
        kinks of a ReLU the outputs are linear in a layer's weights, and the largest change soon is that of an example
        that was near one.
        """
        fit = fit_smooth(self.task, self.budget, self.store / "smooth")
        protected = Protected("predictive", Categorical(), num_examples=SMOOTH_PROTECTED, seed=SEED).on(fit.bench)
        noise = isotropic(self.bench.layout, NUM_LOOKED, SEED)
        smooth = {"projected": fit.draws, "isotropic": noise}
        kinked = {"projected": self.null_space("predictive").draws, "isotropic": noise}
        figures = {
            f"slope_{name}": PlainLosses(fit.bench, protected, draws, NUM_LOOKED).slope(*RELATIVE_LENGTHS)
            for name, draws in smooth.items()
        }
        return figures | {
            f"slope_{name}_of_relu": self.losses(draws).slope(*RELATIVE_LENGTHS) for name, draws in kinked.items()
        }

    def _certified(self, fit: Fit) -> Figures:
        facts = fit.artifact("scale").facts
        told = {name: float(facts[name]) for name in ("largest_loss_change", "relative_length")}
        first = fit.chunks("certificate")[0].facts
        return {**told, "residual": fit.residual, "residual_of_noise": float(first["isotropic"])}

    def _solver_figures(self, solver: Solver, fit: Fit) -> Figures:
        made = {
            f"residual_{solver}": fit.residual,
            f"passes_{solver}": fit.passes,
            f"passes_per_draw_{solver}": fit.passes / fit.num_draws,
            f"seconds_per_draw_{solver}": fit.projection_seconds / fit.num_draws,
        }
        made |= {f"residual_{solver}_at_{passes}": value for passes, value in _falls(fit.course)}
        return {f"{self.task.name}_{name}": value for name, value in made.items()}

    def _named(self, method: str, figures: Mapping[str, float]) -> Figures:
        return {f"{self.task.name}_{method}_{name}": value for name, value in figures.items()}


def _falls(course: Sequence[tuple[float, float]]) -> Iterator[tuple[int, float]]:
    """Residuals after some numbers of passes, as far as they went."""
    for wanted in COURSE:
        reached = [residual for passes, residual in course if passes <= wanted]
        if reached and course[-1][0] >= wanted:
            yield wanted, reached[-1]


def comparisons(task: Task, figures: Mapping[str, float]) -> Figures:
    """What the targets are about: each method beside the network alone, and beside noise."""

    def beside(method: str, metric: str, other: str) -> float:
        return figures[f"{task.name}_{method}_{metric}"] - figures[f"{task.name}_{other}_{metric}"]

    made = {"isotropic_train_accuracy_lost": beside("map", "train_accuracy", "isotropic")}
    for method in ("null_space_predictive", "null_space_loss"):
        made[f"{method}_train_accuracy_lost"] = beside("map", "train_accuracy", method)
        made[f"{method}_nll_above_map"] = beside(method, "nll", "map")
        for other in ("map", "isotropic"):
            made[f"{method}_ood_auroc_above_{other}"] = beside(method, "ood_auroc", other)
    return {f"{task.name}_{name}": value for name, value in made.items()}


def costs(store: Path) -> Figures:
    """Seconds of the projection against the number of weights, and of the draws' stages alone against their number."""
    figures: Figures = {}
    sizes, seconds = [], []
    for hidden in COST_HIDDEN:
        fit = _cost_fit(store, hidden, NUM_DRAWS)
        sizes.append(fit.bench.layout.num_weights)
        seconds.append(fit.projection_seconds)
        figures[f"cost_seconds_{sizes[-1]}_weights"] = seconds[-1]
    of_draws = [_cost_fit(store, COST_HIDDEN[0], num).seconds("draws") for num in COST_DRAWS]
    figures |= {f"cost_seconds_{num}_draws": spent for num, spent in zip(COST_DRAWS, of_draws, strict=True)}
    slopes = {"slope_cost_in_weights": slope(sizes, seconds), "slope_cost_in_draws": slope(COST_DRAWS, of_draws)}
    return figures | slopes


def _cost_fit(store: Path, hidden: int, num_draws: int) -> Fit:
    tree = {
        "name": "cost",
        "network": {"factory": "networks:Perceptron", "arguments": {"hidden": hidden}},
        "data": {"train": {"factory": "afterfit.data.digits:train", "take": COST_EXAMPLES}},
        "method": {"name": NAME, "kernel": "predictive", "solver": "exact", "num_draws": num_draws},
    }
    return fitted(RunConfig.model_validate(tree), store / f"cost-{hidden}")


def parts(measured: Measured) -> Iterator[tuple[str, tuple[str, ...], Callable[[], Figures]]]:
    """Of one task: name, figures by which it is known to be done, and how they are made."""
    name = measured.task.name

    def all_of(*methods: str) -> tuple[str, ...]:
        return tuple(f"{name}_{method}_{metric}" for method in methods for metric in METRICS)

    yield "map and ELLA", all_of("map", "ella"), measured.network_figures
    yield "isotropic noise", all_of("isotropic"), measured.isotropic_figures
    for kernel in KERNELS:
        yield f"{kernel} kernel", all_of(f"null_space_{kernel}"), partial(measured.null_space_figures, kernel)
    if measured.task.compared or measured.budget == "full":
        for solver in get_args(Solver)[1:]:
            made = (f"{name}_residual_{solver}", f"{name}_seconds_per_draw_{solver}")
            yield solver, made, partial(measured.solver_figures, solver)
    if name == SLOPE_TASK:
        yield "slopes", ("slope_projected", "slope_projected_of_relu"), measured.slope_figures


def measure(measured: Measured, record: Record) -> Record:
    """Every figure of a task that is not there yet."""
    task = measured.task
    for what, figures, make in parts(measured):
        if not record.has(*figures):
            print(f"{task.name}: {what}", flush=True)
            record = record.adding(make(), **{task.name: task.told(measured.budget)})
    return record.adding(comparisons(task, record.figures))


def main() -> int:
    """Measure what is missing, and show what falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--only", choices=tuple(task.name for task in TASKS), help="one task")
    parser.add_argument("--store", type=Path, default=STORE)
    given = parser.parse_args()
    store = given.store / given.budget
    record = open_record(NAME, given.budget, TARGETS)
    for task in TASKS:
        if given.only in (None, task.name):
            if task.is_here:
                record = measure(Measured(task, given.budget, store / task.name), record)
            else:
                print(f"{task.name} is left out: see `ENCODER` in null_space_tasks.py for what it needs.")
    if given.only is None and not record.has("slope_cost_in_weights", "slope_cost_in_draws"):
        told = f"exact, {COST_EXAMPLES} digits, perceptrons of {COST_HIDDEN} hidden units, {COST_DRAWS} draws"
        record = record.adding(costs(store), cost=told)
    return 1 if show(record) else 0


if __name__ == "__main__":
    sys.exit(main())
