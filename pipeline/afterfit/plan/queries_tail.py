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
    answers = method.covariances("train", likelihood)
    found = {name: name for name in ("tuning", "plateau") if name in inputs}
    yield "posterior", Declaration(recipe=CollectQueries(likelihood, answers.kind, answers.lambda_sd), inputs=found)
    amortised = method.variances("validation", likelihood)
    score = amortised if amortised is not None and amortised.is_score else None
    if score is not None:
        if "validation" not in request.data:
            raise ConfigError("A score has no unit until validation data give it one; give `data.validation`.")
        yield "covariance-validation", Declaration(recipe=score, inputs=inputs, data=("train", "validation"))
        recipe = ScoreScale(likelihood, request.link)
        yield "score-scale", Declaration(recipe=recipe, inputs={"covariance": "covariance-validation"})
    for role in request.evaluated:
        yield f"covariance-{role}", _answers(request, method, role, inputs)
        recipe = QueryPredictions(role, likelihood, request.link, request.num_draws, is_score=score is not None)
        needs = {"covariance": f"covariance-{role}"} | ({} if score is None else {"scale": "score-scale"})
        yield f"predictions-{role}", Declaration(recipe=recipe, inputs=needs)


def _answers(request: FitRequest, method: QueryMethod, role: str, inputs: Mapping[str, str]) -> Declaration:
    """By few refits for all queries, if that was asked for; a few new examples are answered one by one then too."""
    is_whole = role in request.whole
    amortised, answers = method.variances(role, request.likelihood), method.covariances(role, request.likelihood)
    if is_whole:
        amortised = None if amortised is None else replace(amortised, num_examples=None)
        answers = replace(answers, num_examples=None)
    num_queries = answers.num_queries(request.data[role].num_examples, request.num_outputs)
    if amortised is None or (is_whole and not amortised.pays(num_queries)):
        return Declaration(recipe=answers, inputs=inputs, data=("train", role))
    amortised.check(num_queries)
    return Declaration(recipe=amortised, inputs=inputs, data=tuple(dict.fromkeys(("train", amortised.direction, role))))
