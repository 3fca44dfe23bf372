"""Kill -9 at moments drawn over all stages by bytes written, then the same command: are the digests the same?

Drivers and Ray workers are killed while data are written, and between complete data and their marker. Run it with
`python jobs/benchmarks/kill.py`; two cores need about five minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal, NamedTuple

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "pipeline"
sys.path[:0] = [str(HERE), str(SOURCE)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(SOURCE)])  # of workers and forks
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from afterfit.seeds import Seed  # noqa: E402
from doomed import Doom, Line, digests_of, forks_of, lines_of, recomputed, start  # noqa: E402
from record import open_record, show  # noqa: E402
from small_fits import FITS  # noqa: E402

TARGETS: Mapping[str, tuple[Literal["<=", ">="], float]] = {
    "kills": (">=", 24),
    "digests_equal_share": (">=", 1),
    "kills_in_markers": (">=", 3),
    "kills_of_workers": (">=", 1),
    "recomputed_beyond_cursor": ("<=", 0),
}
TIMES: Mapping[str, int] = {"hour": 1, "full": 5}
"""How often the draws of each kind are made."""

ON_RAY: Mapping[str, Any] = {"engine": "ray", "workers": 2}  # each driver starts its own, which dies with it


class Reference(NamedTuple):
    """An uninterrupted run."""

    digests: Mapping[str, str]
    files: Mapping[str, Sequence[tuple[str, int]]]  # stage -> (moment, bytes) of each data file and save written
    marks: Sequence[str]  # moments between data and marker

    @classmethod
    def of(cls, forks: ForkServerContext, fit: str, folder: Path) -> Reference:
        """Of a new run in a folder."""
        log = folder / f"{fit}.log"
        if start(forks, fit, str(folder / fit), Doom(log=log)) != 0:
            raise RuntimeError(f"The uninterrupted run of {fit} failed; see above.")
        files: dict[str, list[tuple[str, int]]] = {}
        lines = list(lines_of(log))
        for line in lines:
            if line.kind == "kept":
                file, _, size = line.subject.rpartition(" ")
                files.setdefault(file.partition("/")[0], []).append((f"write {file}", int(size)))
        return cls(digests_of(log), files, [f"mark {line.subject}" for line in lines if line.kind == "mark"])


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Where one run is killed."""

    fit: str
    moment: str
    offset: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)  # of the engine
    of_worker: bool = False


class Verdict(NamedTuple):
    """What became of a run that was killed and started again."""

    died: bool
    equal: bool
    again: Sequence[str]


def draw(references: Mapping[str, Reference], random: np.random.Generator) -> Iterator[Kill]:
    """In every stage at one byte of all that it writes; then markers; then some of both on Ray."""
    for fit, reference in references.items():
        for stage in reference.files:
            moment, offset = byte_of(reference.files[stage], random)
            yield Kill(fit=fit, moment=moment, offset=offset)
        for moment in random.choice(list(reference.marks), 3, replace=False):
            yield Kill(fit=fit, moment=str(moment))
    # The gang that trains on Ray takes half a minute to start, so Ray runs the fit that trains nothing.
    reference = references["ggn_nystrom"]
    for stage in ("sketch", "basis", "features-test"):
        moment, offset = byte_of(in_units(reference.files[stage]), random)
        yield Kill(fit="ggn_nystrom", moment=moment, offset=offset, options=ON_RAY, of_worker=True)
    nodes = [moment for moment in reference.marks if "/node/" in moment]
    yield Kill(fit="ggn_nystrom", moment=str(random.choice(nodes)), options=ON_RAY, of_worker=True)
    ends = [moment for moment in reference.marks if moment.count("/") == 1 and "sketch" not in moment]
    yield Kill(fit="ggn_nystrom", moment=str(random.choice(ends[2:-1])), options=ON_RAY)


def byte_of(files: Sequence[tuple[str, int]], random: np.random.Generator) -> tuple[str, int]:
    """One of all the bytes: the file, and where in it."""
    byte = int(random.integers(sum(size for _, size in files)))
    for moment, size in files:
        if byte < size:
            return moment, byte
        byte -= size
    raise AssertionError


def in_units(files: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those that workers write below a stage."""
    return [(moment, size) for moment, size in files if "/unit/" in moment or "/node/" in moment]


def verdict(forks: ForkServerContext, kill: Kill, expected: Mapping[str, str], folder: Path) -> Verdict:
    """Kill a run, and start it again unless it went on by itself."""
    uri, log = str(folder / "store"), folder / "log"
    code = start(forks, kill.fit, uri, Doom(log=log, moment=kill.moment, offset=kill.offset), **kill.options)
    if not log.exists():
        raise RuntimeError(f"A run of {kill.fit} ended with code {code} before it began; see above.")
    died = log.with_suffix(".died").exists() and code == (0 if kill.of_worker else -signal.SIGKILL)
    if not kill.of_worker:
        wait_for_the_end(list(lines_of(log)))
        code = start(forks, kill.fit, uri, Doom(log=log), **kill.options)
    equal = code == 0 and digests_of(log) == expected
    return Verdict(died, equal, recomputed(list(lines_of(log))))


def wait_for_the_end(lines: Sequence[Line]) -> None:
    """Workers outlive a driver by moments."""
    pids = {line.pid for line in lines}
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=["hour", "full"], default="hour")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    forks = forks_of("doomed")
    kills: list[tuple[Kill, Verdict]] = []
    with tempfile.TemporaryDirectory() as scratch:
        references = {fit: Reference.of(forks, fit, Path(scratch)) for fit in FITS}
        for time in range(TIMES[asked.budget]):
            for kill in draw(references, Seed(asked.seed, ("kill", str(time))).numpy()):
                folder = Path(tempfile.mkdtemp(dir=scratch))
                found = verdict(forks, kill, references[kill.fit].digests, folder)
                kills.append((kill, found))
                engine = kill.options.get("engine", "inprocess")
                print(f"{len(kills):3} {kill.fit} {engine} {kill.moment} {kill.offset}: {found}", flush=True)
    record = open_record("kill", asked.budget, TARGETS)
    died = [(kill, found) for kill, found in kills if found.died]
    equal = sum(found.equal for _, found in died)
    record = record.adding(
        {
            "kills": len(died),
            "digests_equal": equal,
            "digests_equal_share": equal / max(len(died), 1),
            "kills_in_markers": sum(kill.moment.startswith("mark ") for kill, _ in died),
            "kills_of_workers": sum(kill.of_worker for kill, _ in died),
            "recomputed_beyond_cursor": sum(len(found.again) for _, found in died),
        },
        kills=f"{TIMES[asked.budget]} draws over all stages of {', '.join(FITS)}, 64 digits, seed {asked.seed}",
    )
    return int(bool(show(record)))


if __name__ == "__main__":
    sys.exit(main())
