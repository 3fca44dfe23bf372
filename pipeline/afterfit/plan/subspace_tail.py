"""What follows a subspace method: cached features, tuning, the Gaussian in the subspace, predictions from it."""

from collections.abc import Iterator, Mapping
from typing import cast

from afterfit.errors import ConfigError
from afterfit.network.workbench import Declaration
from afterfit.plan.predictions import FitPosterior, Predictions
from afterfit.plan.request import FitRequest, SubspaceMethod, check_linearised
from afterfit.plan.tuning import Tuning
from afterfit.predict.linearised import OutputFeatures


def subspace_tail(request: FitRequest, before: Mapping[str, Declaration]) -> Iterator[tuple[str, Declaration]]:  # noqa: ARG001
    """From `basis` and `curvature` to the predictions of every data set that is evaluated.

    Raises:
        ConfigError: if the method is to be tuned by validation data that are not there, or predictions are to be made
            by the plain network.
    """
    check_linearised(request.by)
    method, likelihood = cast(SubspaceMethod, request.method), request.likelihood
    is_auto = "auto" in (method.prior_precision, method.temperature, method.data_fraction)
    objective = method.tuning
    if objective == "auto":
        objective = "validation" if "validation" in request.data else "marginal_likelihood"
    if objective == "marginal_likelihood" and method.data_fraction == "auto":
        raise ConfigError(
            "Marginal likelihoods of different data cannot be compared; give validation data to choose "
            "`method.data_fraction` by, or a number."
        )
    validates = is_auto and objective == "validation"
    if validates and "validation" not in request.data:
        raise ConfigError(
            "Choosing by validation needs validation data; give `data.validation`, set "
            "`method.tuning: marginal_likelihood`, or give numbers for prior precision, temperature and data fraction."
        )
    with_kernel = method.complement == "prior"
    validated = ("validation",) if validates else ()
    for role in (*validated, *request.evaluated):
        recipe = OutputFeatures(role, with_kernel)
        yield f"features-{role}", Declaration(recipe=recipe, inputs={"basis": "basis"}, data=(role,))
    yield (
        "tuning",
        Declaration(
            recipe=Tuning(
                likelihood,
                method.prior_precision,
                method.temperature,
                method.data_fraction,
                method.complement,
                objective,
                request.link,
            ),
            inputs={"curvature": "curvature", "network": "point_estimate"}
            | ({"validation": "features-validation"} if validates else {}),
        ),
    )
    yield (
        "posterior",
        Declaration(
            recipe=FitPosterior(likelihood, method.complement),
            inputs={"curvature": "curvature", "tuning": "tuning", "network": "point_estimate"},
        ),
    )
    for role in request.evaluated:
        yield (
            f"predictions-{role}",
            Declaration(
                recipe=Predictions(role, likelihood, request.link, request.num_draws),
                inputs={"features": f"features-{role}", "posterior": "posterior"},
            ),
        )
