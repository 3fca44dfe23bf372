"""Variational dropout on MNIST: variances of the gradient, errors of three layers of 750, a sparse LeNet-300-100.

    python jobs/reproduce/variational_dropout_mnist.py [--budget hour|full] [--only gradients sparse type_a none vit]

`gradient_variance_{local,per_example,per_batch,none}`: of the loss of all examples by 1 000 of them, averaged over the
weights of the last layer, above three of 250 units, after ten epochs of independent noise with one rate a layer.
`epoch_s_{local,per_example}`: CPU seconds of an epoch of that network, estimated from some steps of each in turn.
`error_{type_a,type_b,none}_750`: percent of the test pictures, by the mean of the softmax over 32 stored draws (the
network alone for `none`). `sparse_error`: percent, of the pruned LeNet-300-100; `sparse_compression`: its weights over
those that are left. `vit_{map,vd}_{accuracy,nll,ece}`: of a small vision transformer on the test pictures of
Fashion-MNIST, as it was trained, and fitted from there. Epochs are in the record; stopped and started again, a fit goes
on from its last save. AFTERFIT_DATA names the folder of the data.

Source: Kingma, Salimans, Welling (2015), arXiv:1506.02557; Molchanov, Ashukha, Vetrov (2017), arXiv:1701.05369.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import places  # noqa: F401  # before everything that it makes importable
from afterfit.algebra import batches, micro_batches
from afterfit.engine.gang import LoneGang
from afterfit.methods.dropout.fit import DropoutTraining
from afterfit.methods.dropout.local import Estimator
from afterfit.plan.bench import Bench
from afterfit.plan.config import read_config
from afterfit.plan.prune import prune
from afterfit.plan.run import Where, prepare, run
from afterfit.predict.sampled import plain_outputs
from afterfit.predict.scores import score_table
from dropout_gradients import trained, variances
from places import RESULTS, RUNS
from record import Budget, Record, Target, open_record, show

NAME = "variational_dropout_mnist"
CONFIGS = Path(__file__).resolve().parents[2] / "configs/variational_dropout"
EPOCHS: Mapping[str, Mapping[Budget, int]] = {
    "sparse": {"hour": 200, "full": 400},
    "type_a": {"hour": 100, "full": 200},
    "type_b": {"hour": 15, "full": 200},
    "none": {"hour": 40, "full": 200},
    "vit": {"hour": 10, "full": 50},
}
PICTURES: Mapping[str, Mapping[Budget, int]] = {"vit": {"hour": 20000, "full": 60000}}
"""To train on, where that is not all 60 000."""
GRADIENT_EPOCHS, REPEATS, TIMED_STEPS = 10, 40, 5
NO_OTHERS = "data.out_of_distribution={}"
INDEPENDENT = ["method.noise=independent", "method.sharing=layer", "method.parametrisation=multiplicative"]
TARGETS: Mapping[str, Target] = {
    "error_type_a_750": ("<=", 1.15),
    "type_a_behind_none": ("<=", 0.0),
    "per_example_over_local": (">=", 1.2),
    "per_batch_over_per_example": (">=", 1.5),
    "sparse_error": ("<=", 2.0),
    "sparse_compression": (">=", 50.0),
    "vit_nll_gained": (">=", 0.0),
    "vit_ece_gained": (">=", 0.0),
    "vit_accuracy_lost": ("<=", 0.005),
}
Figures = dict[str, float]


def gradients(store: str, budget: Budget) -> Figures:  # noqa: ARG001
    """Variances, and seconds of an epoch."""
    fits = {kind: _training(kind) for kind in ("local", "per_example")}
    state = trained(fits["local"], GRADIENT_EPOCHS)
    found = variances(fits["local"], state, _block(fits["local"]), REPEATS)
    figures = {f"gradient_variance_{kind}": value for kind, value in found.items()}
    figures["per_example_over_local"] = found["per_example"] / found["local"]
    figures["per_batch_over_per_example"] = found["per_batch"] / found["per_example"]
    spent: dict[str, list[float]] = {kind: [] for kind in fits}
    for number in range(TIMED_STEPS + 1):
        for kind, fit in fits.items():
            start = time.process_time()
            fit.step({name: value.clone() for name, value in state.items()}, number, LoneGang(fit.num_slices))
            spent[kind] += [time.process_time() - start] if number else []
    for kind, seconds in spent.items():
        figures[f"epoch_s_{kind}"] = median(seconds) * fits[kind].schedule.epochs.steps_an_epoch
    return figures


def _training(estimator: Estimator) -> DropoutTraining:
    overrides = ["network.arguments.sizes=[784,250,250,250,10]", *INDEPENDENT, f"method.estimator={estimator}"]
    overrides += [f"method.training.epochs={GRADIENT_EPOCHS}", NO_OTHERS, "method.rate=0.1", "method.layer_rates=[]"]
    request = prepare(read_config(str(CONFIGS / "mnist_type_a.yaml"), overrides), str(RUNS / NAME)).request
    bench = Bench(request.bench("", {}))
    recipe: Any = request.method.stages(request.likelihood, bench)["variational"].recipe
    return recipe.on(bench)


def _block(fit: DropoutTraining) -> str:
    *_, last = fit.noise.blocks
    return last


def sparse(store: str, budget: Budget) -> Figures:
    """LeNet-300-100."""
    config = read_config(str(CONFIGS / "mnist_sparse.yaml"), [*_epochs("sparse", budget), NO_OTHERS])
    outcome = run(prepare(config, f"{store}/sparse"), where=Where(threads=1))
    left = prune(outcome.store, f"{store}/sparse.safetensors")
    return {
        "sparse_error": 100 * (1 - left.accuracy["test"][1]),
        "sparse_mean_error": 100 * (1 - left.accuracy["test"][0]),
        "sparse_compression": left.compression,
    }


def error(kind: str, overrides: list[str], store: str, budget: Budget) -> Figures:
    """Of three layers of 750."""
    config = read_config(str(CONFIGS / "mnist_type_a.yaml"), [*_epochs(kind, budget), NO_OTHERS, *overrides])
    outcome = run(prepare(config, f"{store}/{kind}"), where=Where(threads=1))
    predictor = "map" if kind == "none" else "posterior"
    scores = outcome.ran["scores"].artifact.table("scores").to_pylist()
    of = {row["metric"]: row["value"] for row in scores if (row["dataset"], row["predictor"]) == ("test", predictor)}
    return {f"error_{kind}_750": 100 * (1 - of["accuracy"]), f"nll_{kind}_750": of["nll"]}


def vit(store: str, budget: Budget) -> Figures:
    """A vision transformer on Fashion-MNIST, beside the weights that it was trained to before."""
    overrides = [*_epochs("vit", budget), f"data.train.take={PICTURES['vit'][budget]}"]
    prepared = prepare(read_config(str(CONFIGS / "fashion_vit.yaml"), overrides), f"{store}/vit")
    outcome = run(prepared, where=Where(threads=1))
    ran = outcome.ran
    inputs = {"network": ran["point_estimate"].stage.place}
    bench = Bench(prepared.request.bench(outcome.store.uri, inputs))
    examples = bench.data("test")
    pieces = batches(examples, micro_batches(examples, range(examples.num_examples), 500))
    probabilities = plain_outputs(bench.network, list(pieces)).softmax(dim=1)
    trained_only = score_table(probabilities, examples.targets())
    rows = ran["scores"].artifact.table("scores").to_pylist()
    fitted = {
        row["metric"]: row["value"] for row in rows if (row["dataset"], row["predictor"]) == ("test", "posterior")
    }
    found = {"map": trained_only, "vd": fitted}
    figures = {f"vit_{name}_{what}": of[what] for name, of in found.items() for what in ("accuracy", "nll", "ece")}
    figures |= {f"vit_{what}_gained": trained_only[what] - fitted[what] for what in ("nll", "ece")}
    return {**figures, "vit_accuracy_lost": trained_only["accuracy"] - fitted["accuracy"]}


def _epochs(part: str, budget: Budget) -> list[str]:
    return [f"method.training.epochs={EPOCHS[part][budget]}"]


NONE = [
    "method.noise=bernoulli",
    "method.sharing=layer",
    "method.learn=false",
    "method.rate=1e-9",
    "method.layer_rates=[]",
    "method.kl_weight=0",
]
PARTS: Mapping[str, tuple[str, Callable[[str, Budget], Figures]]] = {
    "gradients": ("gradient_variance_local", gradients),
    "sparse": ("sparse_error", sparse),
    "type_a": ("error_type_a_750", partial(error, "type_a", [])),
    "none": ("error_none_750", partial(error, "none", NONE)),
    "type_b": ("error_type_b_750", partial(error, "type_b", INDEPENDENT)),
    "vit": ("vit_vd_nll", vit),
}


def with_difference(record: Record) -> Record:
    """Type A beside no dropout, once both are there."""
    if not record.has("error_type_a_750", "error_none_750"):
        return record
    behind = record.figures["error_type_a_750"] - record.figures["error_none_750"]
    return record.adding({"type_a_behind_none": behind})


def main() -> int:
    """Measure what is missing, and show what falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", help="some parts")
    parser.add_argument("--store", default=str(RUNS / NAME), help="a folder, or a URI")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record = open_record(NAME, given.budget, TARGETS, RESULTS)
    for part in given.only or PARTS:
        figure, make = PARTS[part]
        if not record.has(figure):
            epochs = EPOCHS[part][given.budget] if part in EPOCHS else GRADIENT_EPOCHS
            pictures = PICTURES[part][given.budget] if part in PICTURES else 60000
            record = record.adding(make(given.store, given.budget), **{part: f"{pictures} pictures, {epochs} epochs"})
    return 1 if show(with_difference(record)) else 0


if __name__ == "__main__":
    sys.exit(main())
