"""Where reproductions find what they import, and leave what they make. Import it first."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parents[1] / "runs/reproduce"
CHECKPOINT_S = 20.0

_IMPORTED = [str(HERE), str(HERE.parent / "benchmarks"), str(HERE.parents[1] / "pipeline")]
sys.path[:0] = [place for place in _IMPORTED if place not in sys.path]
os.environ["PYTHONPATH"] = os.pathsep.join([*_IMPORTED, os.environ.get("PYTHONPATH", "")])  # of workers
os.environ["OMP_NUM_THREADS"] = "1"

from afterfit.engine import Event, Kind  # noqa: E402


def tell(event: Event) -> None:
    """Print each unit's end, and every tenth of the way there."""
    tenth = max(1, event.total // 10)
    if event.kind in (Kind.FINISHED, Kind.NOTE) or (event.kind == Kind.ADVANCED and event.position % tenth == 0):
        stage = event.place.partition("/")[0]
        print(f"{stage} {event.name} {event.position}/{event.total} {event.seconds:.0f} s {event.note}", flush=True)
