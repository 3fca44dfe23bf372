"""A posterior that answers queries by new passes over the training data, which it therefore needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from afterfit.algebra import Batch, Unsaved, pieces_of
from afterfit.data.identity import IdentifiedExamples, check_unchanged
from afterfit.errors import ConfigError
from afterfit.methods.queries.chosen import num_asked
from afterfit.methods.queries.covariance import answered
from afterfit.methods.queries.refits import told
from afterfit.network.workbench import bound_likelihood
from afterfit.plan.bench import Bench
from afterfit.plan.opened import Opened
from afterfit.plan.queried import outputs_of
from afterfit.plan.request import By, FitRequest, QueryMethod, check_linearised
from afterfit.posterior.gaussian import Gaussian
from afterfit.rows.protocol import check_outputs

NEEDED = ("basis", "curvature", "tuning", "plateau", "noise")
"""Stages that queries read, where there are such."""


@dataclass(frozen=True, eq=False)
class OpenedQueries(Opened):
    """Facts: prior precision; of refits the network they are of, lambda times standard deviation, and its plateau."""

    asked: Callable[[], FitRequest] | None = None
    """What was fitted, with its training data."""

    @property
    def kept(self) -> Sequence[str]:
        """With what preconditions, and what was found before queries."""
        return (*super().kept, *(name for name in NEEDED if name in self.record.stages))

    @cached_property
    def _bench(self) -> tuple[Bench, QueryMethod, Any]:
        if self.asked is None:
            raise ConfigError(
                "Each prediction is a fit of its own over the training data, which the store does not hold; call `fit` "
                "again with the data and this store, which repeats nothing, or name the inputs under `data.evaluation`."
            )
        record = self.record
        request = replace(self.asked(), memory_gb=record.memory_gb, micro_batch=record.micro_batch)
        stages = {**record.stages, "network": record.stages["point_estimate"]}
        bench = Bench(request.bench(self.store.uri, stages))
        check_unchanged(cast(IdentifiedExamples, bench.data("train")), request.data["train"].identity)
        return bench, cast(QueryMethod, request.method), request

    def predict(
        self, batch: Mapping[str, Tensor] | Batch, outputs: Sequence[int] | None = None, *, by: By = "linearised"
    ) -> Gaussian:
        """See `Posterior.predict`. Nothing of it is stored; outputs that are not wanted are not solved for.

        Cost: for each group of examples whose columns fit the memory, some passes over the training data.
        """
        check_linearised(by)
        bench, method, request = self._bench
        likelihood = bound_likelihood(request.likelihood, bench)
        amortised = method.variances("train", likelihood)
        if amortised is not None and amortised.is_score:
            raise ConfigError(
                "A score has no unit by itself; call `afterfit predict` on a run, or set `method.amortised` to null."
            )
        if outputs is not None:
            check_outputs(outputs, bench.num_outputs)
        whole = self.whole(batch)
        recipe = method.covariances("train", likelihood)
        if outputs is not None:
            recipe = replace(recipe, outputs=tuple(outputs))
        solver, each = recipe.solver(bench), recipe.queries_at_once(bench, num_asked(recipe.outputs, bench.num_outputs))
        means, covariances = [], []
        for part in pieces_of(whole, each):
            answer = answered(solver, part, recipe, Unsaved())
            for note in told(answer.reached.residual_k, answer.reached.error_k, recipe.tolerance):
                warnings.warn(note, stacklevel=2)
            means.append(answer.mean_BC if outputs is None else answer.mean_BC[:, list(outputs)])
            covariances.append(answer.covariance(solver, part) if outputs is None else answer.of(outputs))
        mean_BC, covariance_BCC = torch.cat(means), torch.cat(covariances)
        return outputs_of(mean_BC, covariance_BCC, whole.indexes, likelihood)

    def draw(self, seed: int = 0, number: int = 0) -> dict[str, Tensor]:
        """There are none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "This method finds variances of outputs and has no weights to draw; draw from `method: ggn_nystrom`, whose "
            "curvature is the same."
        )
