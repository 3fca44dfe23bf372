"""A basis of a gigabyte under a budget of half of one.

The budget is for what is explicit at once, beside the interpreter with its libraries and the network. So the unique
memory (USS) of the process is taken once everything is imported, has been used in a tiny fit, and the network is there;
from then on it may grow by the budget, and no more.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from afterfit.methods.queries.covariance import HELD_TENSORS
from end_to_end.wide_fit import NUM_COLUMNS, NUM_WEIGHTS

MEMORY_GB = 0.5
MEMORY_OF_FOUR_GB = 2.5  # both outputs of one example, on both sides
SAMPLE_S = 0.05


def run(method: str, folder: Path, memory_gb: float) -> tuple[dict[str, str], float, float]:
    """Digests of the stages, and unique memory (bytes) at the beginning and at most."""
    process = subprocess.Popen(
        [sys.executable, "-m", "end_to_end.wide_fit", method, str(folder), str(memory_gb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    watched = psutil.Process(process.pid)
    baseline = peak = watched.memory_full_info().uss
    process.stdin.write("\n")
    process.stdin.close()
    os.set_blocking(process.stdout.fileno(), False)
    told = ""
    while not told:
        peak = max(peak, watched.memory_full_info().uss)
        time.sleep(SAMPLE_S)
        told = process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    return json.loads(told), baseline, peak


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ella", "ggn_nystrom"])
def test_a_gigabyte_of_columns_is_fitted_in_half_of_one(tmp_path, importable, method):
    assert 4 * NUM_WEIGHTS * NUM_COLUMNS > 1e9
    with ThreadPoolExecutor() as both:  # that they run at once saves a minute; each process' memory is its own
        in_groups, at_once = (
            both.submit(run, method, tmp_path / name, memory_gb)
            for name, memory_gb in (("groups", MEMORY_GB), ("whole", 16.0))
        )
    digests, baseline, peak = in_groups.result()
    grown = peak - baseline
    print(f"\n{method}: {baseline / 1e6:.0f} MB before, at most {peak / 1e6:.0f} MB, {grown / 1e6:.0f} MB more")
    assert grown <= MEMORY_GB * 1e9
    whole, _, most = at_once.result()
    assert most - baseline > 2 * grown  # the budget is what kept it small
    assert digests == whole


@pytest.mark.slow
def test_sixteen_refits_of_four_million_weights_stay_within_what_memory_holds_of_four(tmp_path, importable):
    _, baseline, peak = run("hessian_free", tmp_path, MEMORY_OF_FOUR_GB)
    grown = peak - baseline
    print(f"\n{baseline / 1e6:.0f} MB before, {grown / 1e6:.0f} MB more")
    budget = 0.6 * MEMORY_OF_FOUR_GB * 1e9  # what is held of columns may take .4, and there are eigenpairs
    assert grown <= budget < 4 * NUM_WEIGHTS * 16 * HELD_TENSORS / 2  # all at once would have been far above
