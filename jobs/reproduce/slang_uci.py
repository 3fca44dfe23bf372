"""The regression table of the SLANG paper: 8 data sets x 20 splits x 120 epochs of a network with 50 hidden units.

    python jobs/reproduce/slang_uci.py [--engine ray|inprocess] [--only boston] [--store runs/reproduce/slang_uci]

Figures `<set>_{rmse,rmse_se,ll,ll_se,ll_joint}`: means over splits and their standard errors, in the units of the
targets. `ll` is the mean over test examples of the log of the mean density, `ll_joint` the log of the mean joint
density of all test examples by their number, which is what the paper prints. `<set>_{rmse,ll}_behind` is by how many
standard errors of the difference a figure is worse than the paper's; `num_behind` counts those by more than
one, except RMSE of kin8nm and naval, which are compared in the digit that the paper prints.

Two stages, each a map over data sets: noise and prior precision are chosen for each split by cross-validation on its
training rows, then all splits are fitted and scored. Stopped and started again, it goes on from its last save.
AFTERFIT_DATA names the folder of the data.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

import places  # noqa: F401  # before everything that it makes importable
from afterfit.engine import Engine, Work, open_engine
from afterfit.store.directory import Store, open_store
from afterfit.store.keys import content_key
from means import above, mean_and_error
from places import CHECKPOINT_S, RESULTS, RUNS, tell
from record import Record, Target, open_record, show
from uci_table import DATA_SETS
from uci_units import VERSION, Choose, Fit, units

NAME = "slang_uci"
IN_DIGITS: Mapping[str, Target] = {"kin8nm_rmse": ("<=", 0.085), "naval_rmse": ("<=", 0.005)}
"""Those that the paper prints as .08 and .00."""
COMPARED = [f"{name}_{what}" for name in DATA_SETS for what in ("rmse", "ll")]
BEHIND = [f"{name}_behind" for name in COMPARED if name not in IN_DIGITS]
TARGETS: Mapping[str, Target] = {
    **dict.fromkeys(BEHIND, ("<=", 2.0)),
    **IN_DIGITS,
    "num_behind": ("<=", 4.0),
}


def run(engine: Engine, store: Store, names: Sequence[str]) -> pa.Table:
    """Scores of all splits of some data sets."""
    key = content_key({name: DATA_SETS[name] for name in names}, {}, version=VERSION)
    work = units(names)
    chosen = engine.map(Work(make=Choose, place=f"choose/{key}", units=work))
    make = partial(Fit, store.uri, chosen.place)
    return engine.map(Work(make=make, place=f"fit/{key}", units=work)).table("scores")


def figures(name: str, scores: pa.Table) -> Iterator[tuple[str, float]]:
    """Of one data set."""
    mine = scores.filter(pc.field("set") == name)
    data = DATA_SETS[name]
    likely = data.log_likelihood
    means = {what: mean_and_error(mine, what) for what in ("rmse", "ll", "ll_joint")}
    for what, (mean, error) in means.items():
        yield f"{name}_{what}", mean
        if what != "ll_joint":
            yield f"{name}_{what}_se", error
    yield f"{name}_rmse_behind", above(means["rmse"], data.rmse.mean, data.rmse.error)
    yield f"{name}_ll_behind", -above(means["ll"], likely.mean, likely.error)
    yield f"{name}_ll_joint_behind", -above(means["ll_joint"], likely.mean, likely.error)


def with_count(record: Record) -> Record:
    """How many are behind by more than one standard error, once all are there."""
    if not record.has(*BEHIND):
        return record
    return record.adding({"num_behind": sum(record.figures[name] > 1 for name in BEHIND)})


def main() -> int:
    """Measure what is missing, and show what falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("ray", "inprocess"), default="ray")
    parser.add_argument("--only", choices=tuple(DATA_SETS), nargs="+", help="some data sets")
    parser.add_argument("--store", default=str(RUNS / NAME), help="a folder, or a URI that all workers reach")
    given = parser.parse_args()
    record = open_record(NAME, "hour", TARGETS, RESULTS)
    missing = [name for name in given.only or DATA_SETS if not record.has(f"{name}_rmse")]
    if missing:
        store = open_store(given.store)
        with open_engine(given.engine, store, threads=1, checkpoint_s=CHECKPOINT_S, events=tell) as engine:
            scores = run(engine, store, missing)
        for name in missing:
            record = record.adding(dict(figures(name, scores)), **{name: "20 splits, 120 epochs"})
    return 1 if show(with_count(record)) else 0


if __name__ == "__main__":
    sys.exit(main())
