"""The MNIST figures of the SLANG paper: a perceptron with two layers of 400 units.

It is trained by AdamW for eight epochs from random weights, and fitted from there.

    python jobs/reproduce/slang_mnist.py [--budget hour|full] [--only 16] [--engine ray --workers 2]

Figures `error_L<rank>` (percent of the 10 000 test pictures, by the mean of the softmax over 32 stored draws),
`nll_L<rank>` (nats), and `epoch_s_L<rank>` (seconds of an epoch). An hour has fewer epochs than the budget "full"; the
record says how many. Stopped and started again, a fit goes on from its last save. AFTERFIT_DATA names the folder of the
data.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import places  # noqa: F401  # before everything that it makes importable
from afterfit.engine import EngineName
from afterfit.plan.config import read_config
from afterfit.plan.run import Outcome, Where, prepare, run
from places import RESULTS, RUNS
from record import Budget, Target, open_record, show

NAME = "slang_mnist"
CONFIG = Path(__file__).resolve().parents[2] / "configs/slang/mnist.yaml"
RANKS = (1, 4, 16)
EPOCHS: Mapping[Budget, int] = {"hour": 10, "full": 80}
TARGETS: Mapping[str, Target] = {"error_L16": ("<=", 1.9)}


def fit(rank: int, budget: Budget, store: str, where: Where) -> Outcome:
    """One rank, as far as its scores."""
    overrides = [f"method.rank={rank}", f"method.epochs={EPOCHS[budget]}", "data.out_of_distribution={}"]
    return run(prepare(read_config(str(CONFIG), overrides), store, where), where=where)


def figures(rank: int, budget: Budget, outcome: Outcome) -> Iterator[tuple[str, float]]:
    """Of one rank."""
    scores = outcome.ran["scores"].artifact.table("scores").to_pylist()
    of = {row["metric"]: row["value"] for row in scores if (row["dataset"], row["predictor"]) == ("test", "posterior")}
    seconds = {row["stage"]: row["seconds"] for row in outcome.stages.to_pylist()}
    yield f"error_L{rank}", 100 * (1 - of["accuracy"])
    yield f"nll_L{rank}", of["nll"]
    yield f"epoch_s_L{rank}", seconds["variational"] / EPOCHS[budget]


def main() -> int:
    """Measure what is missing, and show what falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--only", type=int, choices=RANKS, nargs="+", help="some ranks")
    parser.add_argument("--engine", choices=("ray", "inprocess"), default="inprocess")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--store", default=str(RUNS / NAME), help="a folder, or a URI that all workers reach")
    given = parser.parse_args()
    engine: EngineName = given.engine
    where = Where(engine=engine, workers=given.workers, threads=1)
    record = open_record(NAME, given.budget, TARGETS, RESULTS)
    for rank in given.only or RANKS:
        if not record.has(f"error_L{rank}"):
            made = dict(figures(rank, given.budget, fit(rank, given.budget, given.store, where)))
            record = record.adding(
                made, **{f"L{rank}": f"60 000 pictures, {EPOCHS[given.budget]} epochs after 8 of AdamW"}
            )
    return 1 if show(record) else 0


if __name__ == "__main__":
    sys.exit(main())
