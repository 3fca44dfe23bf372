"""Hessian-free Laplace: against conjugate gradients on real networks, in a gap, on regressions, and by signs.

    python jobs/benchmarks/hessian_free.py [--budget hour|full] [--only gap uci lenet resnet20 hutchinson]

`gap_variance_ratio`: mean variance in a gap of one-dimensional data over that at the data, and a picture of it.
`<set>_{map,ella,slang,hessian_free}_ll` and `<set>_coverage90`: nats a test example in the targets' units, and the part
of test targets in intervals of 90 percent, means over splits. `{lenet,resnet20}_{rank_correlation,median_deviation}`:
variances of all outputs of 5 test images by refits, beside those by conjugate gradients with the GGN.
`passes_per_query_{hessian_free,cg}`: over the training data, on the ResNet-20; refits on both sides count twice.
`hutchinson_{rank_correlation,plain_rank_correlation,error}_r<R>`: of the same queries by R refits with signs, with the
leading eigenpairs known and without; `hutchinson_error_over_stated`: over seeds, of the R where it is furthest from 1.
AFTERFIT_DATA names the folder of the data, AFTERFIT_MODELS that of pretrained weights.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from afterfit.plan.config import read_config
from afterfit.plan.run import Outcome, Where, prepare, run
from gap import gap_figures
from record import RESULTS, Budget, Target, open_record, show
from regressions import SETS, regression_figures
from signs import rank_correlation, sign_figures

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs/hessian_free"
TRAIN = {"lenet": "mnist", "resnet20": "cifar10_resnet20"}
CG = ["method.name=implicit_hessian", "method.tolerance=1e-4"]
TARGETS: Mapping[str, Target] = {
    "gap_variance_ratio": (">=", 10.0),
    **{f"{name}_coverage90": (">=", 0.85) for name in SETS},
    **{f"{net}_rank_correlation": (">=", 0.98) for net in TRAIN},
    **{f"{net}_median_deviation": ("<=", 0.02) for net in TRAIN},
    "hutchinson_rank_correlation_r32": (">=", 0.8),
    "hutchinson_error_below_stated": ("<=", 0.15),
}


def fitted(net: str, store: Path, name: str, overrides: list[str]) -> Outcome:
    """A run of a network's configuration; what is finished is not repeated."""
    config = read_config(str(CONFIGS / f"{TRAIN[net]}.yaml"), overrides)
    return run(prepare(config, str(store / net / name)), where=Where(threads=1))


def queries(outcome: Outcome) -> Mapping[str, torch.Tensor]:
    """The table of its queries."""
    table = outcome.ran["covariance-test"].artifact.table("queries")
    return {name: torch.from_numpy(table[name].to_numpy(zero_copy_only=False).copy()) for name in table.column_names}


def network(net: str, store: Path) -> dict[str, float]:
    """Refits beside conjugate gradients."""
    by_refits = queries(fitted(net, store, "refits", []))
    by_products = queries(fitted(net, store, "cg", CG))
    found, right = by_refits["variance"].double(), by_products["variance"].double()
    deviation = ((found - right).abs() / right).median()
    figures = {
        f"{net}_rank_correlation": rank_correlation(found, right),
        f"{net}_median_deviation": float(deviation),
        f"{net}_largest_deviation": float(((found - right).abs() / right).max()),
        f"{net}_residual": float(by_refits["residual"].max()),
        f"{net}_passes_hessian_free": float(by_refits["passes"].double().mean()),
        f"{net}_passes_cg": float(by_products["passes"].double().mean()),
    }
    if net == "resnet20":
        figures |= {f"passes_per_query_{name}": figures[f"{net}_passes_{name}"] for name in ("hessian_free", "cg")}
    return figures


def hutchinson(store: Path) -> dict[str, float]:
    """Signs on the queries of the ResNet-20."""
    return sign_figures(fitted("resnet20", store, "cg", CG))


def main() -> int:
    """Measure what is missing, and show what falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--only", nargs="+", choices=("gap", "uci", *TRAIN, "hutchinson"))
    parser.add_argument("--store", default=str(ROOT / "runs/hessian_free"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    store, budget = Path(given.store), given.budget
    parts: dict[str, tuple[str, Callable[[], dict[str, float]], str]] = {
        "gap": ("gap_variance_ratio", lambda: gap_figures(RESULTS / "hessian_free_gap.png"), "60 points, 50 units"),
        "uci": (f"{SETS[-1]}_coverage90", lambda: regression_figures(_splits(budget)), f"{_splits(budget)} splits"),
        "lenet": ("lenet_rank_correlation", lambda: network("lenet", store), "5 000 images, 50 queries"),
        "resnet20": ("resnet20_rank_correlation", lambda: network("resnet20", store), "500 images, 50 queries"),
        "hutchinson": ("hutchinson_rank_correlation_r32", lambda: hutchinson(store), "the same, 200 seeds"),
    }
    record = open_record("hessian_free", budget, TARGETS)
    for part in given.only or parts:
        figure, make, subset = parts[part]
        if not record.has(figure):
            record = record.adding(make(), **{part: subset})
    return 1 if show(record) else 0


def _splits(budget: Budget) -> int:
    return 3 if budget == "hour" else 20


if __name__ == "__main__":
    sys.exit(main())
