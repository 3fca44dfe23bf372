"""SLANG's steps against the work that they count, and beside IVON on the same network and data.

    python jobs/benchmarks/slang.py

`step_over_floor_mnist`: CPU seconds of a step of the perceptron for MNIST (rank 16, 32 examples, one draw) over the
counted floor 6 P M S + 2 P (L + M S) L + 6 P L^2 at the rate of square products, measured in turn with it;
`step_over_own_products_mnist`: at the rate of products of the step's own sizes, (L, L + M S) times (L + M S, P), in
tiles. `share_outside_vit2m7`: part of a step of a ViT of 2.7 M weights that is not a forward and a backward pass of
the mean loss over the same examples; `share_outside_own_passes_vit2m7`: that is outside its own passes, whose backward
ends in the gradient of every example. `slope_time_in_weights`: of log seconds of a step in log weights, over three
perceptrons. `{slang,ivon}_{epoch_s,nll}`: seconds of an epoch, and NLL (nats) by 32 draws on test digits, after as many
epochs of the perceptron; AFTERFIT_PEER_PACKAGES names a `site-packages` folder that has ivon-opt, beside the same
torch. All on one thread.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import afterfit
from afterfit.data import digits
from afterfit.engine.gang import LoneGang
from afterfit.methods.natural_gradient.steps import NaturalGradientSteps
from afterfit.methods.slang import Slang
from afterfit.network.likelihoods import Categorical
from afterfit.network.perceptron import perceptron
from afterfit.plan.bench import Bench
from afterfit.plan.resolve import request_from_objects
from networks import vit
from record import Record, Target, open_record, show
from weight_draws import slope

NAME = "slang"
PEERS = "AFTERFIT_PEER_PACKAGES"
RANK, NUM_EXAMPLES = 16, 32
TURNS = 12
WARM = 2
HIDDEN = (400, 800, 1600)
EPOCHS, BATCH, NUM_DRAWS = 20, 50, 32
TARGETS: Mapping[str, Target] = {
    "step_over_floor_mnist": ("<=", 2.0),
    "share_outside_vit2m7": ("<=", 0.4),
    "slope_time_in_weights": ("<=", 1.15),
}
Figures = dict[str, float]


class Stepping:
    """Steps of a fit in memory, one after another."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randn(16 * NUM_EXAMPLES, *shape, generator=generator)
        items = [{"pixel_values": picture, "label": number % 10} for number, picture in enumerate(pictures)]
        method = Slang(
            rank=RANK,
            draws_per_step=1,
            batch_size=NUM_EXAMPLES,
            epochs=10,
            momentum=0.9,
            initial_precision=100.0,
            num_slices=1,
            num_draws=1,
        )
        request = request_from_objects(network.eval(), {"train": items}, method, Categorical())
        bench = Bench(request.bench("", {}))
        recipe: Any = method.stages(Categorical(), bench)["variational"].recipe
        self.steps: NaturalGradientSteps = recipe.on(bench)
        self.num_weights = request.layout.num_weights
        self.inputs = pictures[:NUM_EXAMPLES]
        self._state = dict(self.steps.init())
        self._number = 0

    def step(self) -> None:
        """The next one."""
        self._state, _ = self.steps.step(dict(self._state), self._number, LoneGang(1))
        self._number += 1

    @property
    def floor(self) -> float:
        """FLOPs of a step of layers with one position."""
        weights, rows = self.num_weights, NUM_EXAMPLES
        return 6.0 * weights * rows + 2.0 * weights * (RANK + rows) * RANK + 6.0 * weights * RANK**2


class Within:
    """Steps, and the CPU seconds of the passes in each."""

    def __init__(self, stepping: Stepping) -> None:
        self.step = stepping.step
        self.passes_s: list[float] = []
        passes: Any = stepping.steps._passes
        run = passes.run

        def timed(*given: object) -> object:
            start = time.process_time()
            made = run(*given)
            self.passes_s.append(time.process_time() - start)
            return made

        passes.run = timed


def in_turn(*works: Callable[[], object]) -> list[float]:
    """Median CPU seconds of each, all made in turn."""
    spent: list[list[float]] = [[] for _ in works]
    for turn in range(TURNS + WARM):
        for work, times in zip(works, spent, strict=True):
            start = time.process_time()
            work()
            if turn >= WARM:
                times.append(time.process_time() - start)
    return [median(times) for times in spent]


def floor_figures() -> Figures:
    """Of the perceptron."""
    stepping = Stepping(perceptron([784, 400, 400, 10]), (1, 28, 28))
    square = torch.randn(1024, 1024)
    combined_LX = torch.randn(RANK, RANK + NUM_EXAMPLES)
    tiles = [torch.randn(RANK + NUM_EXAMPLES, tile.size) for tile in stepping.steps.bench.layout.tiles]
    moved = [torch.empty(RANK, tile.shape[1]) for tile in tiles]

    def combine() -> None:
        for tile, into in zip(tiles, moved, strict=True):
            torch.mm(combined_LX, tile, out=into)

    step_s, square_s, combined_s = in_turn(stepping.step, lambda: square @ square, combine)
    square_rate = 2.0 * 1024**3 / square_s
    own_rate = 2.0 * stepping.num_weights * RANK * (RANK + NUM_EXAMPLES) / combined_s
    return {
        "step_over_floor_mnist": step_s * square_rate / stepping.floor,
        "step_over_own_products_mnist": step_s * own_rate / stepping.floor,
        "step_s_mnist": step_s,
        "square_gflops": square_rate / 1e9,
        "own_products_gflops": own_rate / 1e9,
    }


def share_figures() -> Figures:
    """Of the ViT."""
    network = vit(192, 6, 3)
    stepping = Stepping(network, (3, 32, 32))
    weights = list(network.parameters())

    def passes() -> None:
        logits = network(pixel_values=stepping.inputs).logits
        torch.autograd.grad(logits.logsumexp(dim=1).mean(), weights)

    within = Within(stepping)
    step_s, passes_s = in_turn(within.step, passes)
    return {
        "share_outside_vit2m7": 1 - passes_s / step_s,
        "share_outside_own_passes_vit2m7": 1 - median(within.passes_s[WARM:]) / step_s,
        "step_s_vit2m7": step_s,
    }


def slope_figures() -> Figures:
    """Of perceptrons."""
    sizes = [Stepping(perceptron([784, hidden, hidden, 10]), (1, 28, 28)) for hidden in HIDDEN]
    seconds = in_turn(*(each.step for each in sizes))
    told = {f"step_s_{each.num_weights}": spent for each, spent in zip(sizes, seconds, strict=True)}
    return {"slope_time_in_weights": slope([each.num_weights for each in sizes], seconds), **told}


def slang_figures() -> Figures:
    """On handwritten digits."""
    method = Slang(
        rank=RANK,
        draws_per_step=1,
        batch_size=BATCH,
        epochs=EPOCHS,
        learning_rate=0.1,
        precision_rate=0.001,
        momentum=0.9,
        num_slices=1,
        initial_precision=500.0,
        prior_precision=10.0,
        group_precisions=(("*bias", 1.0),),
        num_draws=NUM_DRAWS,
    )
    start = time.process_time()
    posterior = afterfit.fit(_network(), list(digits.train()), method=method)
    spent = time.process_time() - start
    pictures, labels = _test()
    outputs = posterior.predict({"pixel_values": pictures}, by="network")
    return {"slang_epoch_s": spent / EPOCHS, "slang_nll": _nll(outputs.probabilities(), labels)}


def ivon_figures() -> Figures:
    """The same with IVON at its usual settings for a small network."""
    sys.path.append(os.environ[PEERS])
    ivon = import_module("ivon")
    network, train = _network().train(), list(digits.train())
    pictures = torch.stack([item["pixel_values"] for item in train])
    labels = torch.tensor([item["label"] for item in train])
    optimiser = ivon.IVON(network.parameters(), lr=0.1, ess=len(train), hess_init=0.5, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)
    start = time.process_time()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train), generator=generator).split(BATCH):
            with optimiser.sampled_params(train=True):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(pictures[chosen]), labels[chosen]).backward()
            optimiser.step()
    spent = time.process_time() - start
    test_pictures, test_labels = _test()
    total = torch.zeros(len(test_labels), 10)
    for _ in range(NUM_DRAWS):
        with optimiser.sampled_params(), torch.no_grad():
            total += network(test_pictures).softmax(dim=1) / NUM_DRAWS
    return {"ivon_epoch_s": spent / EPOCHS, "ivon_nll": _nll(total, test_labels)}


def _network() -> nn.Module:
    return perceptron([64, 200, 200, 10]).eval()


def _test() -> tuple[Tensor, Tensor]:
    items = list(digits.test())
    return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["label"] for item in items])


def _nll(probabilities_BC: Tensor, labels: Tensor) -> float:
    value = -float(probabilities_BC.double().gather(1, labels[:, None]).log().mean())
    assert math.isfinite(value)
    return value


def measure(record: Record) -> Record:
    """Every figure that is not there yet."""
    parts: dict[str, tuple[Callable[[], Figures], str]] = {
        "step_over_floor_mnist": (floor_figures, "random pictures, 32 of them, one draw, rank 16"),
        "share_outside_vit2m7": (share_figures, "random pictures, 32 of them, one draw, rank 16"),
        "slope_time_in_weights": (slope_figures, f"perceptrons of {HIDDEN} hidden units"),
        "slang_nll": (slang_figures, f"1 000 digits, {EPOCHS} epochs; 500 others"),
    }
    if PEERS in os.environ:
        parts["ivon_nll"] = (ivon_figures, f"1 000 digits, {EPOCHS} epochs; 500 others")
    for figure, (make, told) in parts.items():
        if not record.has(figure):
            print(figure, flush=True)
            record = record.adding(make(), **{figure: told})
    return record


def main() -> int:
    """Measure what is missing, and show what falls short."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return 1 if show(measure(open_record(NAME, "hour", TARGETS))) else 0


if __name__ == "__main__":
    sys.exit(main())
