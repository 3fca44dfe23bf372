"""From a request to its graph of stages."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from afterfit.errors import ConfigError
from afterfit.network.likelihoods import Gaussian
from afterfit.network.workbench import Declaration
from afterfit.plan.bench import Bench
from afterfit.plan.draws_tail import draws_tail
from afterfit.plan.predictions import Scores
from afterfit.plan.queries_tail import queries_tail
from afterfit.plan.request import FitRequest, PosteriorKind
from afterfit.plan.stage import Stage
from afterfit.plan.subspace_tail import subspace_tail
from afterfit.training.noise import NoiseVariance

Tail = Callable[[FitRequest, Mapping[str, Declaration]], Iterable[tuple[str, Declaration]]]
"""From the request and what its method declared to the stages that follow, up to the predictions."""

TAILS: Final[Mapping[PosteriorKind, Tail]] = {"subspace": subspace_tail, "draws": draws_tail, "queries": queries_tail}
"""Kind of posterior -> what follows a method that leaves one."""


def posterior_plan(request: FitRequest) -> list[Stage]:
    """The stages of a fit in an order in which each finds its inputs finished.

    Raises:
        ConfigError: if the method does not fit the data, is to be tuned by validation data that are not there, or
            cannot take data that come later.
    """
    train = request.data["train"]
    request.method.check(train.num_examples, request.num_outputs)
    declared = _declarations(request)
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


def _declarations(request: FitRequest) -> dict[str, Declaration]:
    method, likelihood = request.method, request.likelihood
    declared = {"point_estimate": Declaration(recipe=request.training, data=("train",))}
    if isinstance(likelihood, Gaussian) and likelihood.noise_variance is None:
        declared["noise"] = Declaration(recipe=NoiseVariance(), data=("train",))
    made = method.stages(likelihood, Bench(request.bench("", {})))
    if request.extensions and not any(declaration.extended_by for declaration in made.values()):
        raise ConfigError(
            f"The method {method.name} takes no data that come later: what it leaves belongs to the data that it was "
            "fitted on; add the data to `train`, and run again."
        )
    declared |= made
    declared |= TAILS[method.posterior](request, made)
    if request.evaluated:
        scores = Scores(likelihood.name, request.in_distribution, request.out_of_distribution)
        inputs = {role: f"predictions-{role}" for role in request.evaluated}
        declared["scores"] = Declaration(recipe=scores, inputs=inputs)
    return declared


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
        inputs.setdefault("network", done["point_estimate"])
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
