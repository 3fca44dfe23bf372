"""A fit with a basis of one gigabyte, for a process of its own: python -m end_to_end.wide_fit METHOD STORE MEMORY_GB

Writes "ready" once everything is imported and has been used, and the network is there; begins at a line of input;
writes the digest of each stage.
"""

import json
import os
import sys
import tempfile

import torch
from torch import Tensor, nn

from afterfit.engine import open_engine
from afterfit.methods.ella import Ella
from afterfit.methods.ggn_nystrom import GgnNystrom
from afterfit.methods.hessian_free import HessianFree
from afterfit.network.likelihoods import likelihood_named
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import Method
from afterfit.plan.resolve import request_from_objects
from afterfit.seeds import Seed, normals
from afterfit.store.directory import open_store

NUM_COLUMNS = 64
NUM_WEIGHTS = 9 * (690 * 690 + 690) + 16 * 690 + 690 + 690 * 2 + 2


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


def network(width: int, depth: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, width), *(Residual(width) for _ in range(depth)), nn.Linear(width, 2)).eval()


METHODS = {
    # More landmark rows than features, and no more than the examples have.
    "ella": (40, lambda k: Ella(num_landmarks=k + 6, num_features=k, prior_precision=1.0, temperature=1.0)),
    "ggn_nystrom": (8, lambda k: GgnNystrom(num_probes=k, prior_precision=1.0)),
    "hessian_free": (
        8,
        lambda k: HessianFree(rank=k // 4, queries=4, prior_precision=1.0, lambda_sd=1e-3, max_passes=4),
    ),
}
"""Name -> number of examples, and the method with so many columns. The sketch has a rank of at most 8."""


def fit(module: nn.Module, num_examples: int, method: Method, uri: str, memory_gb: float) -> dict[str, str]:
    inputs = normals(Seed(1), num_examples, 16)
    data = [{"input": x, "label": number % 2} for number, x in enumerate(inputs)]
    request = request_from_objects(
        module,
        {"train": data, "test": data[:4]},
        method,
        likelihood_named("categorical", None),
        in_distribution=("test",),
        memory_gb=memory_gb,
        micro_batch=8,
        num_shards=2,
        tile_weights=60_100,
    )
    plan, store = posterior_plan(request), open_store(uri)
    with open_engine("inprocess", store, threads=1) as engine:
        ran = execute(plan, request, engine, store)
    return {name: stage.artifact.digest for name, stage in ran.items()}


def main(method: str, uri: str, memory_gb: float) -> None:
    num_examples, make = METHODS[method]
    os.fsync = lambda _: None  # gigabytes that are not kept need not reach the disk
    with tempfile.TemporaryDirectory() as folder:
        fit(network(8, 1), num_examples, make(4), folder, memory_gb)
    module = network(690, 9)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(fit(module, num_examples, make(NUM_COLUMNS), uri, memory_gb)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
