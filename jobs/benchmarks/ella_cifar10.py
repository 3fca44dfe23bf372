"""ELLA on pretrained CIFAR-10 ResNets: calibration against the point estimate, time, memory, and laplace-torch.

    python jobs/benchmarks/ella_cifar10.py [--budget hour|full] [--only resnet20]

Fits each network once with the largest K and the prior's complement. Everything smaller is a prefix of the cached
features: K leading columns of the basis span the K leading eigenvectors, so no other pass is needed.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from afterfit.network.likelihoods import Categorical
from afterfit.plan.config import read_config
from afterfit.plan.predictions import Predictions, matrix, prediction_table
from afterfit.plan.run import Outcome, Where, prepare, run
from afterfit.plan.tuning import Curvature, Features, Tuning, posterior_at, search, validation_objective
from afterfit.posterior.subspace import Complement
from afterfit.predict.scores import ood_table, score_table
from record import Budget, Target, open_record, show

ROOT = Path(__file__).parents[2]
HEADLINE = 20
FEATURES: Mapping[str, tuple[int, ...]] = {
    "resnet20": (20, 50, 100, 200),
    "resnet32": (20,),
    "resnet44": (20,),
    "resnet56": (20,),
}
"""Numbers of features reported for each network."""
ORACLE_NLL = {"resnet20": 0.2479, "resnet32": 0.2320, "resnet44": 0.2150, "resnet56": 0.2106}
"""One temperature fitted on the test labels themselves."""
WHOLE = {"train": 20000, "validation": 2000, "test": 10000, "cifar100": 3000}
PART = {"train": 4000, "validation": 500, "test": 3000, "cifar100": 500}
SUBSETS: Mapping[Budget, Mapping[str, Mapping[str, int]]] = {
    "hour": {"resnet20": WHOLE, "resnet32": PART, "resnet44": PART, "resnet56": PART},
    "full": {"resnet20": WHOLE, "resnet32": WHOLE, "resnet44": WHOLE, "resnet56": WHOLE},
}
TARGETS: Mapping[str, Target] = {
    "resnet20_ella_nll": ("<=", 0.252),
    "resnet20_ella_ece": ("<=", 0.010),
    **{f"resnet20_ella_k{features}_nll": ("<=", 0.245) for features in FEATURES["resnet20"] if features > HEADLINE},
    **{f"{net}_ella_nll": ("<=", nll + 0.005) for net, nll in ORACLE_NLL.items() if net != "resnet20"},
    "resnet20_ood_auroc_gain": (">=", 0.0),
    "resnet20_complement_ood_auroc_gain": (">=", 0.0),
    "resnet20_ray_digests_equal": (">=", 1.0),
    "time_ratio_laplace_torch_over_afterfit": (">=", 2.0),
}
FEW = {"train": 500, "validation": 100, "test": 200, "cifar100": 100}
"""Images on which the engines are compared."""
TIMED_STAGES = ("landmarks", "gram", "basis", "curvature")
NUM_CHOOSING = 1000


def fit(net: str, subset: Mapping[str, int], store: Path) -> Outcome:
    """The fit of one network; finished stages are not repeated."""
    overrides = [
        *taking(subset),
        f"method.num_features={max(FEATURES[net])}",
        "method.complement=prior",
        *(["memory_gb=4", "micro_batch=32"] if net != "resnet20" else []),  # fewer passes over the landmarks
    ]
    config = read_config(str(ROOT / f"configs/cifar10_resnet/ella_{net}.yaml"), overrides)
    return run(prepare(config, str(store / net)), where=Where(threads=1))


def taking(subset: Mapping[str, int]) -> list[str]:
    """Overrides of a configuration that take the first images only."""
    roles = {"test": "evaluation.test", "cifar100": "out_of_distribution.cifar100"}
    return [f"data.{roles.get(role, role)}.take={count}" for role, count in subset.items()]


def same_on_ray(store: Path) -> dict[str, float]:
    """The part of a small fit's artifacts that has the same digests in this process and on two Ray workers."""
    config = read_config(
        str(ROOT / "configs/cifar10_resnet/ella_resnet20.yaml"), [*taking(FEW), "method.num_landmarks=200"]
    )
    here = run(prepare(config, str(store / "here")), where=Where(threads=1)).ran
    ray = run(prepare(config, str(store / "ray")), where=Where(engine="ray", workers=2)).ran
    equal = [here[stage].artifact.digest == ray[stage].artifact.digest for stage in here]
    return {"resnet20_ray_digests_equal": sum(equal) / len(equal), "resnet20_ray_stages_compared": float(len(equal))}


def evaluate(net: str, outcome: Outcome) -> dict[str, float]:
    """Every figure of one network, from the cached features."""

    def features(role: str) -> Features:
        return Features.of(outcome.ran[f"features-{role}"].artifact)

    curvature = Curvature.of(outcome.ran["curvature"].artifact)
    validation, test, outside = features("validation"), features("test"), features("cifar100")
    figures: dict[str, float] = {}
    for num in FEATURES[net]:
        scores = scored(curvature, validation, test, outside, num)
        prefix = f"{net}_ella" if num == HEADLINE else f"{net}_ella_k{num}"
        figures |= {f"{prefix}_{metric}": value for metric, value in scores.items()}
    whole = scored(curvature, validation, test, outside, HEADLINE, "prior")
    figures |= {f"{net}_complement_{metric}": value for metric, value in whole.items()}
    stop = scored(curvature, validation, test, outside, HEADLINE, data_fraction="auto")
    figures |= {f"{net}_early_stop_{metric}": value for metric, value in stop.items()}
    choosing, reporting = _rows(test, slice(0, NUM_CHOOSING)), _rows(test, slice(NUM_CHOOSING, None))
    for num in FEATURES[net]:
        chosen = scored(curvature, choosing, reporting, outside, num)
        figures |= {f"{net}_chosen_on_test_k{num}_{metric}": value for metric, value in chosen.items()}
    point = {"probabilities": test.mean_NC.double().softmax(1), "outside": outside.mean_NC.double().softmax(1)}
    figures |= {f"{net}_map_{metric}": value for metric, value in _scores(point, test).items()}
    for name in ("ella", "complement"):
        gain = figures[f"{net}_{name}_ood_auroc"] - figures[f"{net}_map_ood_auroc"]
        figures[f"{net}_{'' if name == 'ella' else 'complement_'}ood_auroc_gain"] = gain
    seconds = {row["stage"]: row["seconds"] for row in outcome.stages.to_pylist()}
    peaks = [row["peak_mb"] for row in outcome.stages.to_pylist() if row["peak_mb"]]
    figures[f"{net}_fit_seconds"] = sum(seconds[stage] for stage in TIMED_STAGES)
    figures[f"{net}_peak_gb"] = max(peaks) / 1000
    return figures


def scored(
    curvature: Curvature,
    choosing: Features,
    reporting: Features,
    outside: Features,
    num_features: int,
    complement: Complement = "none",
    data_fraction: float | str = 1.0,
) -> dict[str, float]:
    """Scores with the first K features; prior precision and temperature chosen on `choosing`."""
    likelihood = Categorical()
    recipe = Tuning(likelihood, "auto", "auto", data_fraction, complement, "validation", "monte_carlo")  # type: ignore[arg-type]
    curvature = curvature._replace(chunks_nKK=curvature.chunks_nKK[:, :num_features, :num_features])
    choice, _ = search(recipe, curvature, validation_objective(recipe, curvature, _narrow(choosing, num_features)))
    posterior = posterior_at(curvature, choice, complement)
    predict = Predictions("test", likelihood, "monte_carlo", 512)
    made = {
        name: matrix(prediction_table(predict, posterior, _narrow(part, num_features))["probabilities"])
        for name, part in (("probabilities", reporting), ("outside", outside))
    }
    return _scores(made, reporting) | {
        "prior_precision": choice.prior_precision,
        "temperature": choice.temperature,
        "num_images": float(curvature.count_n[: choice.num_chunks].sum()),
    }


def _scores(made: Mapping[str, torch.Tensor], reporting: Features) -> dict[str, float]:
    assert reporting.targets is not None
    scores = score_table(made["probabilities"], reporting.targets)
    scores |= ood_table(made["probabilities"], made["outside"])
    return {name: scores[name] for name in ("accuracy", "nll", "ece", "brier", "ood_auroc")}


def _narrow(features: Features, num_features: int) -> Features:
    return features._replace(features_NCK=features.features_NCK[:, :, :num_features])


def _rows(features: Features, rows: slice) -> Features:
    def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[rows]

    return Features(
        features.mean_NC[rows],
        features.features_NCK[rows],
        cut(features.kernel_NCC),
        cut(features.targets),
        features.index_N[rows],
    )


def compare() -> None:
    """laplace-torch's ELLA beside ours on the same images: see peer_ella."""
    interpreter = os.environ.get("AFTERFIT_PEER_PYTHON")
    if interpreter is None:
        print("Set AFTERFIT_PEER_PYTHON to a Python that has laplace-torch, for the time ratio (see peer_ella.py).")
        return
    subprocess.run([sys.executable, Path(__file__).with_name("peer_ella.py"), "--peer", interpreter], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--only", choices=tuple(ORACLE_NLL), help="one network")
    parser.add_argument("--store", type=Path, default=ROOT / "runs/benchmarks/ella_cifar10")
    given = parser.parse_args()
    for net in [given.only] if given.only else ORACLE_NLL:
        subset = SUBSETS[given.budget][net]
        outcome = fit(net, subset, given.store / given.budget)
        told = ", ".join(f"{count} {role}" for role, count in subset.items())
        open_record("ella_cifar10", given.budget, TARGETS).adding(evaluate(net, outcome), **{net: told})
    if given.only is None:
        told = ", ".join(f"{count} {role}" for role, count in FEW.items())
        open_record("ella_cifar10", given.budget, TARGETS).adding(same_on_ray(given.store / "engines"), engines=told)
        compare()
    return 1 if show(open_record("ella_cifar10", given.budget, TARGETS)) else 0


if __name__ == "__main__":
    sys.exit(main())
