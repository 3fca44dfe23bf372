"""Fits with noisy weights on tiny networks, for tests of their parts."""

from typing import Any

import torch
from torch import nn

from afterfit.methods.dropout.fit import DropoutTraining
from afterfit.methods.variational_dropout import NoisyTraining, VariationalDropout
from afterfit.network.likelihoods import Categorical, Gaussian
from afterfit.plan.bench import Bench
from afterfit.plan.resolve import request_from_objects
from cases import NetworkCase

TYPE_A: dict[str, Any] = {"noise": "correlated", "sharing": "unit"}
CLASSES = Categorical()


def fit_of(case: NetworkCase, module: nn.Module | None = None, **choices: Any) -> DropoutTraining:
    """Of a case, or of another module on its data."""
    likelihood = Gaussian(0.5) if isinstance(case.likelihood, Gaussian) else case.likelihood
    module = case.module() if module is None else module
    return fit_on(module, case.items, likelihood=likelihood, output=case.output, **choices)


def fit_on(
    module: nn.Module, items: Any, likelihood: Any = CLASSES, output: str = "auto", **choices: Any
) -> DropoutTraining:
    """Of a module and data."""
    choices.setdefault("training", NoisyTraining(epochs=2, batch_size=6))
    method = VariationalDropout(**choices)
    request = request_from_objects(module, {"train": items}, method, likelihood, output=output)
    bench = Bench(request.bench("", {}))
    recipe: Any = method.stages(likelihood, bench)["variational"].recipe
    return recipe.on(bench)


def items_of(width: int, classes: int) -> list[dict[str, Any]]:
    """Random examples."""
    return [{"data": torch.randn(width).double(), "label": number % classes} for number in range(12)]
