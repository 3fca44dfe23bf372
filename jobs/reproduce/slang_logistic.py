"""The logistic regression table of the SLANG paper: ranks 1, 5 and 10 beside the best full Gaussian.

    python jobs/reproduce/slang_logistic.py [--budget hour|full] [--engine ray|inprocess] [--only australian]

Figures `<set>_L<rank>_{neg_elbo,kl,nll}`, and with `full` for `L<rank>`: means over 20 splits, of a1a over 20 seeds.
`neg_elbo` is in nats per training example, and as in the paper without the log of the prior precision of the bias,
5.8 nats of all examples together; `neg_elbo_whole` has it. `kl` is the mean of both divergences between SLANG's
posterior and the full Gaussian. `<set>_L<rank>_elbo_behind` is by how many standard errors of the difference
`neg_elbo` is above the paper's. The paper makes 10 000 epochs, as does the budget "full"; "hour" fewer.

Two stages, each a map: full Gaussians, then SLANG. Stopped and started again, it goes on from its last save.
AFTERFIT_DATA names the folder of the data.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

import places  # noqa: F401  # before everything that it makes importable
from afterfit.engine import Engine, Work, open_engine
from afterfit.store.directory import Store, open_store
from afterfit.store.keys import content_key
from logistic_table import DATA_SETS, RANKS, DataSet
from logistic_units import VERSION, FullFits, SlangFits, full_units, slang_units
from means import above, mean_and_error
from places import CHECKPOINT_S, RESULTS, RUNS, tell
from record import Budget, Record, Target, open_record, show

NAME = "slang_logistic"
MEASURED = ("neg_elbo", "neg_elbo_whole", "kl", "nll")
TARGETS: Mapping[str, Target] = {
    **{f"{name}_L{rank}_elbo_behind": ("<=", 2.0) for name in DATA_SETS for rank in RANKS},
    **{f"{name}_kl_rises": ("<=", 0.0) for name in DATA_SETS},
}


def run(engine: Engine, store: Store, names: Sequence[str], budget: Budget) -> tuple[pa.Table, pa.Table]:
    """Scores of the full Gaussians and of SLANG."""
    key = content_key({name: DATA_SETS[name].folder for name in names}, {}, version=VERSION)
    full = engine.map(Work(make=FullFits, place=f"full/{key}", units=full_units(names)))
    choices = {f"{name} {rank}": DATA_SETS[name].choices(rank, budget) for name in names for rank in RANKS}
    place = f"slang/{content_key(choices, {'full': key}, version=VERSION)}"
    make = partial(SlangFits, store.uri, full.place, budget)
    return full.table("scores"), engine.map(Work(make=make, place=place, units=slang_units(names))).table("scores")


def figures(data: DataSet, full: pa.Table, slang: pa.Table) -> Iterator[tuple[str, float]]:
    """Of one data set."""
    mine = pc.field("set") == data.name
    for what in MEASURED:
        yield f"{data.name}_full_{what}", mean_and_error(full.filter(mine), what)[0]
    divergences = []
    for rank in RANKS:
        rows, name = slang.filter(mine & (pc.field("rank") == rank)), f"{data.name}_L{rank}"
        means = {what: mean_and_error(rows, what) for what in MEASURED}
        for what, (mean, error) in means.items():
            yield f"{name}_{what}", mean
            yield f"{name}_{what}_se", error
        printed = data.printed[rank]
        yield f"{name}_elbo_behind", above(means["neg_elbo"], printed.neg_elbo, printed.neg_elbo_error)
        divergences.append(means["kl"][0])
    yield f"{data.name}_kl_rises", float(sum(higher > lower for lower, higher in pairwise(divergences)))


def told(name: str, budget: Budget) -> str:
    """What was run, for the record."""
    fits = "20 seeds" if name == "a1a" else "20 splits"
    return f"{fits}, {DATA_SETS[name].choices(1, budget).epochs} epochs"


def main() -> int:
    """Measure what is missing, and show what falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--engine", choices=("ray", "inprocess"), default="ray")
    parser.add_argument("--only", choices=tuple(DATA_SETS), nargs="+", help="some data sets")
    parser.add_argument("--store", default=str(RUNS / NAME), help="a folder, or a URI that all workers reach")
    given = parser.parse_args()
    record: Record = open_record(NAME, given.budget, TARGETS, RESULTS)
    missing = [name for name in given.only or DATA_SETS if not record.has(f"{name}_L{RANKS[-1]}_kl")]
    if missing:
        store = open_store(given.store)
        with open_engine(given.engine, store, threads=1, checkpoint_s=CHECKPOINT_S, events=tell) as engine:
            full, slang = run(engine, store, missing, given.budget)
        for name in missing:
            record = record.adding(dict(figures(DATA_SETS[name], full, slang)), **{name: told(name, given.budget)})
    return 1 if show(record) else 0


if __name__ == "__main__":
    sys.exit(main())
