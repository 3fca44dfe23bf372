"""From a request to its graph of stages."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from afterfit.errors import ConfigError
from afterfit.network.likelihoods import Gaussian
from afterfit.network.workbench import Declaration
from afterfit.plan.bench import Bench
from afterfit.plan.predictions import FitPosterior, Predictions, Scores
from afterfit.plan.request import FitRequest
from afterfit.plan.stage import Stage
from afterfit.plan.tuning import Tuning
from afterfit.predict.linearised import OutputFeatures
from afterfit.training.noise import NoiseVariance


def posterior_plan(request: FitRequest) -> list[Stage]:
    """The stages of a fit in an order in which each finds its inputs finished.

    Raises:
        ConfigError: if the method does not fit the data, or is to be tuned by validation data that are not there.
    """
    train = request.data["train"]
    request.method.check(train.num_examples, request.num_outputs)
    declared = dict(_declarations(request))
    roles = _extend(request, declared)
    stages: dict[str, Stage] = {}
    for name in _in_order(declared):
        stages[name] = _stage(request, name, declared[name], stages, roles.get(name, {}))
    return list(stages.values())


def _extend(request: FitRequest, declared: dict[str, Declaration]) -> Mapping[str, Mapping[str, str]]:
    """Add to each sum over the training data the sums over data that came later, and let others read the union.

    Returns:
        Name of an added stage -> which data play "train" for it.
    """
    roles: dict[str, Mapping[str, str]] = {}
    sums = {name: each for name, each in declared.items() if each.extended_by is not None and request.extensions}
    for name, declaration in declared.items():
        inputs = {role: f"{up}-with-extensions" if up in sums else up for role, up in declaration.inputs.items()}
        declared[name] = replace(declaration, inputs=inputs)
    for name, declaration in sums.items():
        assert declaration.extended_by is not None
        parts = {"first": name}
        for role in request.extensions:
            parts[role] = f"{name}-{role}"
            declared[parts[role]] = declaration
            roles[parts[role]] = {"train": role}
        declared[f"{name}-with-extensions"] = Declaration(recipe=declaration.extended_by(tuple(parts)), inputs=parts)
    return roles


def _declarations(request: FitRequest) -> Iterable[tuple[str, Declaration]]:
    method, likelihood = request.method, request.likelihood
    yield "point_estimate", Declaration(recipe=request.training, data=("train",))
    if isinstance(likelihood, Gaussian) and likelihood.noise_variance is None:
        yield "noise", Declaration(recipe=NoiseVariance(), data=("train",))
    yield from method.stages(likelihood, Bench(request.bench("", {}))).items()
    evaluated = (*request.in_distribution, *request.out_of_distribution)
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
    for role in (*validated, *evaluated):
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
    for role in evaluated:
        yield (
            f"predictions-{role}",
            Declaration(
                recipe=Predictions(role, likelihood, request.link, request.num_draws),
                inputs={"features": f"features-{role}", "posterior": "posterior"},
            ),
        )
    if evaluated:
        yield (
            "scores",
            Declaration(
                recipe=Scores(likelihood.name, request.in_distribution, request.out_of_distribution),
                inputs={role: f"predictions-{role}" for role in evaluated},
            ),
        )


def _in_order(declared: Mapping[str, Declaration]) -> list[str]:
    ordered: dict[str, None] = {}

    def visit(name: str) -> None:
        for upstream in declared[name].inputs.values():
            visit(upstream)
        ordered.setdefault(name)

    for name in declared:
        visit(name)
    return list(ordered)


def _stage(
    request: FitRequest,
    name: str,
    declaration: Declaration,
    done: Mapping[str, Stage],
    roles: Mapping[str, str],
) -> Stage:
    inputs = {role: done[upstream] for role, upstream in declaration.inputs.items()}
    data: dict[str, Any] = {role: request.data[roles.get(role, role)].identity for role in declaration.data}
    if name == "point_estimate":  # neither cuts nor memory reach it: another choice of weights trains nothing again
        context = {"network": request.network.identity, "output": request.network.output}
        return Stage(name, declaration.recipe, inputs, data, context, roles)
    context: dict[str, Any] = {}
    if declaration.data:
        inputs["network"] = done["point_estimate"]
        context = {
            "layout": request.layout.fingerprint,
            "micro_batch": request.micro_batch,
            "memory_gb": request.memory_gb,
            "num_shards": {role: request.data[roles.get(role, role)].num_shards for role in declaration.data},
        }
        if request.arithmetic.changed:
            context["rows"] = request.arithmetic.changed
    if "noise" in done and isinstance(getattr(declaration.recipe, "likelihood", None), Gaussian):
        inputs["noise"] = done["noise"]
    return Stage(name, declaration.recipe, inputs, data, context, roles)
