"""Small work whose bits depend on the order of addition, and that can be killed at any named moment, once."""

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Cursor, Gang, Progress, Result, State, Stop, Unit, add, fold
from afterfit.engine import EngineName, Event, Kind, Work, open_engine
from afterfit.errors import NumericalError
from afterfit.seeds import Seed, normals
from afterfit.store.directory import open_store

NUM_BATCHES = 4
NUM_ROUNDS = 4
NUM_STEPS = 6
NUM_SLICES = 5
UNITS = [Unit(f"shard-{index}", {"index": index}) for index in range(5)]
FOREST = [Unit(f"pair-{index}", {"index": index}, tree=f"tree-{index % 2}") for index in range(5)]


class Ran(NamedTuple):
    """What a run left and told."""

    digests: Mapping[str, str]  # place -> digest, of all artifacts in the store
    events: Sequence[Event]

    @property
    def notes(self) -> list[str]:
        return [event.note for event in self.events if event.kind == Kind.NOTE]


@dataclass(frozen=True)
class Toy:
    """What all of them share."""

    log: Path  # gets a line for every moment
    kill_at: str = ""  # the moment at which the process is killed
    deaths: int = 1  # how often
    fail_at: str = ""  # the moment at which the work fails
    pause_s: float = 0.0  # at every moment

    def moment(self, name: str) -> None:
        """Note that we are here; die here if that was asked for and has not happened often enough."""
        with self.log.open("a") as log:
            log.write(f"{name}\n")
        time.sleep(self.pause_s)
        if name == self.kill_at:
            died = self.log.with_suffix(".died")
            deaths = died.stat().st_size if died.exists() else 0
            if deaths < self.deaths:
                died.write_bytes(bytes(deaths + 1))
                os.kill(os.getpid(), signal.SIGKILL)
        if name == self.fail_at:
            raise NumericalError(f"The toy broke down at {name!r}.")


class ToySum(Toy):
    """Sums of squares of wild size, in float32, as a Task and a Reducer."""

    def init(self) -> State:
        return {
            "sum/00000": torch.zeros(40),
            "sum/00001": torch.zeros(24),
            "count/all": torch.zeros((), dtype=torch.int64),
        }

    def accumulate(self, state: State, item: tuple[Unit, int]) -> State:
        unit, position = item
        self.moment(f"accumulate {unit.name} {position}")
        drawn = _wild(Seed(1).child(unit.name, position), 64)
        state["sum/00000"].add_(drawn[:40])
        state["sum/00001"].add_(drawn[40:])
        return {**state, "count/all": state["count/all"] + 1}

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        return fold(self, lambda start: ((unit, p) for p in range(start, NUM_BATCHES)), NUM_BATCHES, cursor)

    def merge(self, left: State, right: State) -> State:
        self.moment(f"merge {next(iter(left))} {_total(left, right)}")
        return add(left, right)

    def finalise(self, state: State) -> Result:
        self.moment("finalise")
        families: Mapping[str, Any] = {name.split("/")[0]: self._tiles(state, name) for name in state}
        return Result(families, facts={"tiles": list(state)})

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        state = self.leaf(unit, cursor)
        tiles = [(f"{unit.name}-{name[4:]}", state[name]) for name in ("sum/00000", "sum/00001")]
        return Result({"sum": self._slowly(tiles)}, {"rows": pa.table({"unit": [unit.name]})})

    def _tiles(self, state: State, chosen: str) -> Iterator[tuple[str, Tensor]]:
        family = chosen.split("/")[0]
        return self._slowly([(n.split("/")[1], state[n]) for n in state if n.split("/")[0] == family])

    def _slowly(self, tiles: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tiles:
            self.moment(f"write {name}")
            yield name, tensor


class ToyForest(ToySum):
    """One tree for each half of the units, with tiles of its own."""

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        state = super().leaf(unit, cursor)
        return {f"{unit.tree}/only": state["sum/00000"]}

    def finalise(self, state: State) -> Result:
        return Result.of_state(state)


class ToyRounds(Toy):
    """Power iteration with a matrix that is a sum over units."""

    def init(self) -> State:
        return {"vector/all": torch.ones(12), "round/all": torch.zeros((), dtype=torch.int64)}

    def leaf(self, state: State, unit: Unit, cursor: Cursor) -> State:
        number = int(state["round/all"])
        start, total = cursor.resume() or (0, {"image/all": torch.zeros(12)})
        for position in range(start, 2):
            self.moment(f"leaf {number} {unit.name} {position}")
            root = _wild(Seed(2).child(unit.name, position), 12 * 3).reshape(12, 3)
            total = {"image/all": total["image/all"] + root @ (root.T @ state["vector/all"])}
            cursor.reached(position + 1, 2, total)
        return total

    def merge(self, left: State, right: State) -> State:
        return add(left, right)

    def advance(self, state: State, total: State) -> tuple[State, Progress]:
        number = int(state["round/all"]) + 1
        self.moment(f"advance {number}")
        size = total["image/all"].norm()
        after = {"vector/all": total["image/all"] / size, "round/all": torch.tensor(number)}
        return after, Progress(Stop.BUDGET if number == NUM_ROUNDS else None, {"eigenvalue": float(size)})

    def finalise(self, state: State) -> Result:
        self.moment("finalise")
        return Result.of_state({"vector/all": state["vector/all"]})


class ToySteps(Toy):
    """Gradient descent whose gradient is a sum over slices."""

    num_slices = NUM_SLICES
    num_steps = NUM_STEPS

    def init(self) -> State:
        return {"weights/all": torch.ones(8), "momentum/all": torch.zeros(8)}

    def step(self, state: State, number: int, gang: Gang) -> tuple[State, Progress]:
        parts = []
        for part in gang.mine:
            self.moment(f"step {number} slice {part}")
            drawn = _wild(Seed(3).child(number, part), 8)
            parts.append({"gradient": drawn * state["weights/all"], "half": drawn[:3].double().abs()})
        total = gang.sum(parts)
        last = gang.gather([{"index": torch.tensor(part)} for part in gang.mine])
        if [int(part["index"]) for part in last] != list(range(NUM_SLICES)):
            raise NumericalError("The parts came out of order.")
        momentum = state["momentum/all"].mul_(0.9).add_(total["gradient"], alpha=1e-6)
        weights = state["weights/all"] - momentum
        return {"weights/all": weights, "momentum/all": momentum}, Progress(None, {"size": float(total["half"].sum())})

    def finalise(self, state: State, progress: pa.Table) -> Result:
        self.moment("finalise")
        return Result.of_state({"weights/all": state["weights/all"]}, {"rows": progress.num_rows})


class ToyShardedSteps(Toy):
    """The same of weights that slices hold parts of: each step takes every part to every slice, and back."""

    num_slices = NUM_SLICES
    num_steps = NUM_STEPS

    def owner(self, name: str) -> int | None:
        return int(name[-1]) if name.startswith("weights/") else None

    def init(self) -> State:
        parts = {f"weights/part-{part}": torch.ones(3 + part) for part in range(NUM_SLICES)}
        return {**parts, "sizes/all": torch.zeros(NUM_SLICES)}

    def step(self, state: State, number: int, gang: Gang) -> tuple[State, Progress]:
        held = {int(name[-1]) for name in state if name.startswith("weights/")}
        if held != set(gang.mine):
            raise NumericalError(f"Slices {list(gang.mine)} hold {sorted(held)}.")
        given = [[{"weights": state[f"weights/part-{part}"]} for _ in range(NUM_SLICES)] for part in gang.mine]
        wholes = [torch.cat([part["weights"] for part in parts]) for parts in gang.exchange(given)]
        back = []
        for part, whole in zip(gang.mine, wholes, strict=True):
            self.moment(f"step {number} slice {part}")
            moved = 1e-6 * _wild(Seed(4).child(number, part), len(whole)) * whole
            pieces = moved.split([3 + other for other in range(NUM_SLICES)])
            back.append([{"moved": piece, "from": torch.tensor(part)} for piece in pieces])
        after, sizes = dict(state), []
        for part, met in zip(gang.mine, gang.exchange(back), strict=True):
            if [int(one["from"]) for one in met] != list(range(NUM_SLICES)):
                raise NumericalError("The parts came out of order.")
            total = sum((one["moved"] for one in met), torch.zeros(3 + part))
            after[f"weights/part-{part}"] = state[f"weights/part-{part}"] - total
            sizes.append({"size": total.norm()})
        after["sizes/all"] = state["sizes/all"] + torch.stack([one["size"] for one in gang.gather(sizes)])
        return after, Progress(None, {"size": float(after["sizes/all"].sum())})

    def finalise(self, state: State, progress: pa.Table) -> Result:
        self.moment("finalise")
        return Result.of_state(state, {"rows": progress.num_rows})


TOYS: Mapping[str, tuple[str, type[Toy], Sequence[Unit]]] = {
    "map": ("map", ToySum, UNITS),
    "reduce": ("reduce", ToySum, UNITS),
    "forest": ("reduce", ToyForest, FOREST),
    "rounds": ("iterate", ToyRounds, UNITS),
    "steps": ("iterate", ToySteps, ()),
    "sharded": ("iterate", ToyShardedSteps, ()),
}


def work_of(toy: str, log: Path, **options: Any) -> tuple[str, Work]:
    """The verb and the stage of a toy; `options` are those of `Toy`."""
    verb, kind, units = TOYS[toy]
    return verb, Work(make=partial(kind, log, **options), place=f"toy/{toy}", units=units, facts={"toy": toy})


def run_toys(toys: Sequence[str], uri: str, log: Path, *, name: EngineName = "inprocess", **options: Any) -> Ran:
    """Run toy stages in one engine; `options` are those of `Toy` and of `open_engine`."""
    of_toy = {key: options.pop(key) for key in ("kill_at", "deaths", "fail_at", "pause_s") if key in options}
    store = open_store(uri)
    events: list[Event] = []
    with open_engine(name, store, **{"checkpoint_s": 0.0, "events": events.append, **options}) as engine:
        for toy in toys:
            verb, work = work_of(toy, log, **of_toy)
            getattr(engine, verb)(work)
    return Ran({place: store.read(place).digest for place in store.places()}, events)


def _wild(seed: Seed, size: int) -> Tensor:
    """Numbers of very different sizes, so that any other order of addition shows."""
    return normals(seed, size) * torch.exp(6 * normals(seed.child("size"), size))


def _total(left: State, right: State) -> str:
    """Names the merge of the tile that counts, by how many batches it covers."""
    return str(int(left["count/all"] + right["count/all"])) if "count/all" in left else "-"


def main(toy: str, uri: str, log: Path, options: Mapping[str, Any]) -> None:
    """Run a toy in a process of its own."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which nohup has taken away
    run_toys([toy], uri, log, **options)
