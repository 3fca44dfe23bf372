"""What follows a method that answers queries: the prior precision, the plateau of lambda, covariances, predictions."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from afterfit.errors import ConfigError
from afterfit.network.workbench import Declaration
from afterfit.plan.queried import CollectQueries, QueryPredictions, ScoreScale
from afterfit.plan.request import FitRequest, QueryMethod, check_linearised
from afterfit.plan.tuning import Tuning

SOLVES_WITH = {"basis": "basis", "curvature": "curvature", "tuning": "tuning"}


def queries_tail(request: FitRequest, before: Mapping[str, Declaration]) -> Iterator[tuple[str, Declaration]]:  # noqa: ARG001
    """From leading eigenpairs to the predictions of the first examples of every data set that is evaluated.

    Raises:
        ConfigError: if predictions are to be made by the plain network, or a score has no validation data.
    """
    check_linearised(request.by)
    method, likelihood = cast(QueryMethod, request.method), request.likelihood
    tuning = Tuning(likelihood, method.prior_precision, 1.0, 1.0, "prior", "marginal_likelihood", request.link)
    yield "tuning", Declaration(recipe=tuning, inputs={"curvature": "curvature", "network": "point_estimate"})
    inputs, plateau = dict(SOLVES_WITH), method.plateau(likelihood)
    if plateau is not None:
        yield "plateau", Declaration(recipe=plateau, inputs=dict(SOLVES_WITH), data=("train",))
        inputs["plateau"] = "plateau"
    found = {name: name for name in ("tuning", "plateau") if name in inputs}
    yield "posterior", Declaration(recipe=CollectQueries(likelihood, plateau is not None), inputs=found)
    is_score = False
    amortised = method.variances("validation", likelihood)
    if amortised is not None and amortised.is_score:
        is_score = True
        if "validation" not in request.data:
            raise ConfigError("A score has no unit until validation data give it one; give `data.validation`.")
        yield "covariance-validation", Declaration(recipe=amortised, inputs=inputs, data=("train", "validation"))
        recipe = ScoreScale(likelihood, request.link)
        yield "score-scale", Declaration(recipe=recipe, inputs={"covariance": "covariance-validation"})
    for role in request.evaluated:
        yield f"covariance-{role}", _answers(request, method, role, inputs)
        recipe = QueryPredictions(role, likelihood, request.link, request.num_draws, is_score)
        needs = {"covariance": f"covariance-{role}"} | ({"scale": "score-scale"} if is_score else {})
        yield f"predictions-{role}", Declaration(recipe=recipe, inputs=needs)


def _answers(request: FitRequest, method: QueryMethod, role: str, inputs: Mapping[str, str]) -> Declaration:
    """By few refits for all queries, if that was asked for; a few new examples are answered one by one then too."""
    is_whole = role in request.whole
    amortised = method.variances(role, request.likelihood)
    if amortised is not None:
        amortised = replace(amortised, num_examples=None) if is_whole else amortised
        num_examples = request.data[role].num_examples
        asked = num_examples if amortised.num_examples is None else min(num_examples, amortised.num_examples)
        try:
            amortised.check(asked * request.num_outputs)
        except ConfigError:
            if not is_whole:
                raise
        else:
            data = dict.fromkeys(("train", amortised.direction, role))
            return Declaration(recipe=amortised, inputs=inputs, data=tuple(data))
    answers = method.covariances(role, request.likelihood)
    answers = replace(answers, num_examples=None) if is_whole else answers
    return Declaration(recipe=answers, inputs=inputs, data=("train", role))
