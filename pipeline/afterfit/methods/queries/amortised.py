"""Variances of many queries from a few refits: signs of each query, or one common direction.

`hutchinson`: right-hand sides sum_q s_q grad f_q for signs s; s_q times what a refit moves output q by has the
expectation Var(q), and is exact once there are as many refits as queries, since signs are columns of a Hadamard matrix.
What the leading eigenpairs and the prior give is known exactly, so that signs are spent on the remainder only. `score`:
the mean absolute output is raised, as in the paper; how far output q moves is a covariance with that, not a variance.

Source: McInerney, Kallus (2024), arXiv:2403.10671 for the score; Hutchinson (1990), doi:10.1080/03610919008812866.

Shapes: n examples, C outputs, Q = n C queries, R refits, K eigenpairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, Unit, Unsaved, batches, in_data_order, micro_batches
from afterfit.errors import ConfigError
from afterfit.methods.queries.chosen import known
from afterfit.methods.queries.covariance import Asking
from afterfit.methods.queries.refits import influence, unended
from afterfit.methods.queries.solving import Solver, zero_tiles
from afterfit.network.workbench import Outline, Workbench
from afterfit.precision import CORE
from afterfit.seeds import Seed

Amortised = Literal["hutchinson", "score"]
PILOT = 4
"""Refits that say how many are needed."""
ACCURACY = 0.2
"""Of a variance, relative: what `auto` asks for."""


class Estimate(NamedTuple):
    """Of all queries."""

    variance_Q: Tensor
    error_Q: Tensor  # standard error


class Answers(NamedTuple):
    """Of refits with signs: s_q times how far the sum of s_p f_p moves query q."""

    known_Q: Tensor  # variances by the leading eigenpairs and the prior
    raw_QR: Tensor
    known_QR: Tensor  # what the leading eigenpairs and the prior say of the same
    residual_R: Tensor  # see `Influence`

    def estimate(self) -> Estimate:
        """With what is known taken out first, if what is left then varies less."""
        left_QR = self.raw_QR - self.known_QR
        if float(left_QR.var(dim=1).sum()) < float(self.raw_QR.var(dim=1).sum()):
            return estimated(self.known_Q, left_QR)
        return estimated(torch.zeros_like(self.known_Q), self.raw_QR)

    def beside(self, more: Answers) -> Answers:
        """Of both."""
        return Answers(
            self.known_Q,
            torch.cat([self.raw_QR, more.raw_QR], dim=1),
            torch.cat([self.known_QR, more.known_QR], dim=1),
            torch.cat([self.residual_R, more.residual_R]),
        )


@dataclass(frozen=True, kw_only=True)
class AmortisedVariances(Asking):
    """Of the first examples of a data set: `mean` and `variance` (n, C), `index`, `target` if there are any.

    Also `error` (n, C), standard errors of the variances (zeros of a score), and the fact num_refits.

    Cost: some passes over the training data for all R refits together, and two over the queries.
    """

    VERSION: ClassVar[int] = 2
    verb: ClassVar[str] = "map"

    amortised: Amortised
    num_refits: int | Literal["auto"]
    seed: int
    direction: str  # role whose outputs a score raises: one for all data sets, so that their scores have one unit
    num_raised: int | None  # the first of these, however many are asked about; None: all

    @property
    def is_score(self) -> bool:
        """Whether what it finds has no unit."""
        return self.amortised == "score"

    def pays(self, num_queries: int) -> bool:
        """Whether it may take fewer refits than one for each query."""
        return self.is_score or self.least < num_queries

    @property
    def least(self) -> int:
        """Refits with signs that there will be at least."""
        return PILOT if self.num_refits == "auto" else self.num_refits

    def check(self, num_queries: int) -> None:
        """Refuse what direct refits do with less.

        Raises:
            ConfigError: naming the number.
        """
        if not self.pays(num_queries):
            raise ConfigError(f"{self.least} refits with signs are asked for, and {_cheaper(num_queries)}")

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One; refused at once where memory does not hold the refits that there will be at least."""
        _check_held(1 if self.is_score else self.least, self.queries_at_once(outline, 1))
        return [Unit("all", {"stop": self.asked(outline.num_examples(self.role))})]

    def on(self, bench: Workbench) -> _AmortisedTask:
        """Needs what `QueryCovariances` needs."""
        return _AmortisedTask(self, bench)


@dataclass(frozen=True)
class _AmortisedTask:
    recipe: AmortisedVariances
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        recipe, solver = self.recipe, self.recipe.solver(self.bench)
        queries = Queries(solver, recipe.role, unit.details["stop"])
        kept = queries.outputs()
        num_queries = kept["mean"].numel()
        if recipe.is_score:
            found, residual_R = self._score(queries, cursor)
            num = 1
        else:
            answers = self._by_signs(queries, num_queries, cursor)
            found, residual_R, num = answers.estimate(), answers.residual_R, answers.raw_QR.shape[1]
        kept |= {"variance": found.variance_Q.view_as(kept["mean"]).clamp_min(0)}
        kept |= {"error": found.error_Q.view_as(kept["mean"])}
        notes = [*_notes(found, recipe.amortised, num), *unended(residual_R, recipe.tolerance, "refits")]
        return Result(
            tensors={family: [("all", values)] for family, values in in_data_order(kept).items()},
            facts={"num_refits": num, "notes": notes},
        )

    def _score(self, queries: Queries, cursor: Cursor) -> tuple[Estimate, Tensor]:
        """How far each output moves when the mean absolute output of `direction` is raised."""
        recipe, solver = self.recipe, queries.solver
        count = self.bench.num_examples(recipe.direction)
        raised = Queries(solver, recipe.direction, min(count, recipe.num_raised or count))
        mean_nC = raised.outputs()["mean"]
        rhs = raised.summed(mean_nC.flatten().sign()[:, None] / mean_nC.numel())
        found = influence(solver, rhs, recipe.sides, recipe.at(self.bench), cursor).checked()
        score_Q = torch.cat([found.moved(solver, batch).flatten().cpu() for batch in queries]).abs()
        return Estimate(score_Q, torch.zeros_like(score_Q)), found.residual_k

    def _by_signs(self, queries: Queries, num_queries: int, cursor: Cursor) -> Answers:
        asked, fits = self.recipe.num_refits, self.recipe.queries_at_once(self.bench, 1)
        first = self.recipe.least
        known_Q = queries.known()
        if asked != "auto":
            return self._answers(queries, known_Q, range(first), cursor)
        pilot = self._answers(queries, known_Q, range(first), Unsaved())
        num = needed(pilot.estimate(), first)
        _check_held(num, fits)
        if num >= num_queries:
            raise ConfigError(f"{num} refits with signs would be needed, and {_cheaper(num_queries)}")
        return pilot.beside(self._answers(queries, known_Q, range(first, num), cursor)) if num > first else pilot

    def _answers(self, queries: Queries, known_Q: Tensor, chosen: range, cursor: Cursor) -> Answers:
        solver, recipe = queries.solver, self.recipe
        signs_QR = hadamard_signs(len(known_Q), chosen, Seed(recipe.seed, ("signs",)))
        rhs = queries.summed(signs_QR)
        found = influence(solver, rhs, recipe.sides, recipe.at(self.bench), cursor).checked()
        known = solver.preconditioner.low_rank()(rhs)
        raw = [found.moved(solver, batch).cpu().flatten(0, 1) for batch in queries]
        left = [solver.response.times(batch, known).cpu().flatten(0, 1) for batch in queries]
        return Answers(known_Q, signs_QR * torch.cat(raw), signs_QR * torch.cat(left), found.residual_k)


@dataclass(frozen=True)
class Queries:
    """The outputs of the first examples of a data set."""

    solver: Solver
    role: str
    num_examples: int

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches, in order."""
        data = self.solver.bench.data(self.role)
        return batches(data, micro_batches(data, range(self.num_examples), self.solver.bench.micro_batch))

    def outputs(self) -> dict[str, Tensor]:
        """`mean` (n, C) in float64, `index` and, if there are any, `target`, in the order of the micro-batches."""
        kept: dict[str, list[Tensor]] = {}
        for batch in self:
            with torch.no_grad():
                kept.setdefault("mean", []).append(self.solver.response.network(batch.inputs).to(CORE).cpu())
            kept.setdefault("index", []).append(batch.indexes)
            if batch.targets is not None:
                kept.setdefault("target", []).append(batch.targets)
        return {name: torch.cat(parts) for name, parts in kept.items()}

    def summed(self, weights_QR: Tensor) -> dict[str, Tensor]:
        """sum_q w_q grad f_q by tiles (P_tile, R)."""
        into, first = zero_tiles(self.solver.response, weights_QR.shape[1]), 0
        for batch in self:
            width = len(batch) * self.solver.bench.num_outputs
            part = weights_QR[first : first + width].view(len(batch), -1, weights_QR.shape[1])
            self.solver.response.add_rows(batch, into, part)
            first += width
        return into

    def known(self) -> Tensor:
        """Variances by the leading eigenpairs and the prior, (Q,)."""
        return torch.cat([known(self.solver, batch).diagonal(dim1=1, dim2=2).flatten() for batch in self])


def hadamard_signs(num_queries: int, chosen: range, seed: Seed) -> Tensor:
    """Columns of a Hadamard matrix in random order, rows at random places and with random signs, (Q, R).

    With as many columns as the matrix has, their mean outer product is the identity.
    """
    size, generator = _order(num_queries), seed.generator()
    rows_Q = torch.randperm(size, generator=generator)[:num_queries]
    columns = torch.randperm(size, generator=generator)
    flips_Q = 1 - 2 * torch.randint(2, (num_queries,), generator=generator)
    both = rows_Q[:, None] & columns[list(chosen)][None]
    parity = torch.zeros_like(both)
    while bool(both.any()):
        parity ^= both & 1
        both = both >> 1
    return ((1 - 2 * parity) * flips_Q[:, None]).to(CORE)


def _order(num_queries: int) -> int:
    """Of the smallest Hadamard matrix of a power of two with so many rows."""
    return 1 << (num_queries - 1).bit_length()


def estimated(known_Q: Tensor, answers_QR: Tensor) -> Estimate:
    """The mean, and its standard error by two refits or more, which are drawn without putting back."""
    num_queries, num = answers_QR.shape
    left = max(0.0, 1 - num / _order(num_queries))
    return Estimate(known_Q + answers_QR.mean(dim=1), answers_QR.std(dim=1) * math.sqrt(left / num))


def needed(estimate: Estimate, num_refits: int) -> int:
    """Refits for the accuracy that `auto` asks for, by the spread of a few of them."""
    relative = float((estimate.error_Q / estimate.variance_Q.clamp_min(torch.finfo(CORE).tiny)).median())
    wanted = num_refits * (relative / ACCURACY) ** 2 if relative < 1 / torch.finfo(CORE).eps else math.nan
    return max(num_refits, math.ceil(wanted)) if math.isfinite(wanted) else len(estimate.variance_Q)


def _check_held(num_refits: int, fits: int) -> None:
    if num_refits > fits:
        raise ConfigError(
            f"{num_refits} refits with signs are made together, and `memory_gb` holds {fits}; raise it, or lower "
            "`method.num_refits`."
        )


def _cheaper(num_queries: int) -> str:
    return (
        f"{num_queries} refits answer all queries exactly; set `method.amortised` to null, or ask about more examples "
        "together."
    )


def _notes(found: Estimate, kind: Amortised, num: int) -> Iterator[str]:
    if kind == "score":
        yield "Variances are scores, covariances with the mean absolute output: they order queries and have no unit."
        return
    relative = float((found.error_Q / found.variance_Q.abs().clamp_min(1e-300)).median())
    below = int((found.variance_Q < 0).sum())
    yield f"Variances are estimates by {num} refits with signs, with a relative standard error of {relative:.1%}."
    if below:
        yield f"{below} of {len(found.variance_Q)} estimates are below zero and count as zero; take more refits."
