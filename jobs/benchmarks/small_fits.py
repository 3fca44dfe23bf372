"""Fits of a few seconds that go through every stage, with many tiles, groups, shards and saves: to be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from torch import Tensor, nn

from afterfit.engine import Engine, EngineName, open_engine
from afterfit.plan.config import RunConfig
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.resolve import request_of
from afterfit.store.directory import open_store


def _digits(part: str, number: int, skip: int = 0) -> Mapping[str, Any]:
    return {"factory": f"afterfit.data.digits:{part}", "skip": skip, "take": number}


SHARED: Final[Mapping[str, Any]] = {
    "network": {"factory": "small_fits:DigitNet"},
    "data": {
        "train": _digits("train", 64),
        "validation": _digits("validation", 16),
        "evaluation": {"test": _digits("test", 16)},
        "out_of_distribution": {"others": _digits("validation", 8, skip=16)},
    },
    "prediction": {"num_draws": 64},
    "micro_batch": 3,
    "num_shards": 8,
    "tile_weights": 256,
}

NULL_SPACE: Final[Mapping[str, Any]] = {"name": "null_space", "num_protected": 24, "num_draws": 3, "block_size": 3}

FITS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ella": {
        **SHARED,
        "name": "ella",
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "num_slices": 6},
        "method": {
            "name": "ella",
            "num_landmarks": 40,
            "num_features": 12,
            "temperature": 1.0,
            "complement": "prior",
        },
        "memory_gb": 1.6e-4,
    },
    "ggn_nystrom": {
        **SHARED,
        "name": "ggn_nystrom",
        "method": {"name": "ggn_nystrom", "num_probes": 24},
        "memory_gb": 4.2e-4,
    },
    "null_space": {
        **SHARED,
        "name": "null_space",
        "method": {**NULL_SPACE, "solver": "exact", "more_draws": [5]},
        "num_shards": 4,
        "memory_gb": 1.6e-3,
    },
    "null_space_cg": {
        **SHARED,
        "name": "null_space_cg",
        "method": {**NULL_SPACE, "solver": "cg", "preconditioner": "sweep", "scale": "validation", "max_passes": 8},
        "prediction": {"by": "network"},
        "num_shards": 4,
        "memory_gb": 3e-3,
    },
    "null_space_alternating": {
        **SHARED,
        "name": "null_space_alternating",
        "method": {**NULL_SPACE, "kernel": "loss", "solver": "alternating", "scale": "evidence", "max_passes": 4},
        "num_shards": 4,
        "memory_gb": 2e-3,
    },
    "slang": {
        **SHARED,
        "name": "slang",
        "method": {
            "name": "slang",
            "rank": 3,
            "draws_per_step": 2,
            "batch_size": 24,
            "epochs": 2,
            "num_slices": 4,
            "start": "ggn_nystrom",
            "num_draws": 3,
            "more_draws": [5],
        },
        "num_shards": 4,
        "memory_gb": 2e-3,
    },
    "variational_dropout": {
        **SHARED,
        "name": "variational_dropout",
        "method": {
            "name": "variational_dropout",
            "training": {"epochs": 2, "batch_size": 24, "learning_rate": 1e-2, "num_slices": 4},
            "num_draws": 3,
            "more_draws": [5],
        },
        "num_shards": 4,
        "memory_gb": 2e-3,
    },
    "hessian_free": {
        **SHARED,
        "name": "hessian_free",
        "method": {"name": "hessian_free", "queries": 2, "rank": 24, "tolerance": 0.05, "lambda_sd": [1e-3, 1e-2]},
        "micro_batch": 16,
        "num_shards": 4,
        "memory_gb": 5e-3,
    },
}
"""Name -> configuration. The memory makes groups of 2 and of 4 of the 8 tiles."""


class DigitNet(nn.Module):
    """A convolutional network for pictures of 8 x 8 with about 1500 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 24),
            nn.Tanh(),
            nn.Linear(24, 10),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.layers(pixel_values)


def run_fit(
    name: str,
    uri: str,
    *,
    engine: EngineName = "inprocess",
    around: Callable[[Engine], Engine] = lambda engine: engine,
    **options: Any,
) -> dict[str, str]:
    """Finish a fit in a store.

    Args:
        name: of the fit.
        uri: of the store.
        engine: "inprocess" or "ray".
        around: what to put between the plan and the engine.
        **options: of `open_engine`.

    Returns:
        Place of each stage -> digest of its artifact.
    """
    store = open_store(uri)
    request = request_of(RunConfig.model_validate(FITS[name]), store)
    plan = posterior_plan(request)
    with open_engine(engine, store, **{"threads": 1, "checkpoint_s": 0.0, **options}) as running:
        execute(plan, request, around(running), store)
    return digests(uri, [stage.place for stage in plan])


def digests(uri: str, places: Iterable[str]) -> dict[str, str]:
    """Place -> digest of the finished artifact there."""
    store = open_store(uri)
    return {place: store.read(place).digest for place in places}
