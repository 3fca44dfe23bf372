"""The small promises of the engines that need no toy."""

import os
import subprocess
import sys
from functools import partial

import pyarrow as pa
import pytest
import torch

from afterfit.algebra import Result, State, Unit, add
from afterfit.engine import Event, Kind, Work, open_engine
from afterfit.engine.bench import Bench, Settings
from afterfit.engine.events import Outbox, PeakMemory, ignore
from afterfit.engine.jobs import Merge
from afterfit.engine.progress import appended
from afterfit.errors import ArtifactError, ConfigError
from afterfit.store.directory import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def test_the_in_process_engine_does_not_import_ray():
    code = (
        "import sys, tempfile\n"
        "from afterfit.engine import open_engine\n"
        "from afterfit.store.directory import open_store\n"
        "with open_engine('inprocess', open_store(tempfile.mkdtemp())): pass\n"
        "sys.exit(any(name.split('.')[0] == 'ray' for name in sys.modules))\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **paths})


def test_units_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="Two units of stage are called 'b'"):
        Work(make=object, place="stage", units=[Unit("a"), Unit("b"), Unit("b")])


def test_the_in_process_engine_refuses_a_cluster(store):
    with (
        pytest.raises(ConfigError, match="choose the engine 'ray'"),
        open_engine("inprocess", store, workers=3),
    ):
        pass


class Threads:
    """Tells how many threads it had."""

    def run(self, _unit, _cursor) -> Result:
        return Result(facts={"threads": torch.get_num_threads()})


def test_threads_are_those_of_the_engine_inside_and_the_callers_outside(store):
    before = torch.get_num_threads()
    with open_engine("inprocess", store, threads=before + 1) as engine:
        engine.map(Work(make=Threads, place="stage", units=[Unit("a")]))
    assert torch.get_num_threads() == before
    assert store.read("stage/unit/a").facts["threads"] == before + 1


def test_facts_are_content_and_what_is_about_it_is_not(store):
    with open_engine("inprocess", store) as engine:
        one, two = (
            engine.map(Work(make=Threads, place=place, units=[Unit("a")], facts={"k": 1}, about={"by": place}))
            for place in ("one", "two")
        )
    assert one.facts["k"] == 1
    assert one.about["by"] == "one"
    assert one.digest == two.digest


class OvertakenReducer:
    """While it merges, another copy of the same job finishes first."""

    def __init__(self, overtake) -> None:
        self._overtake = overtake

    def merge(self, left: State, right: State) -> State:
        overtake, self._overtake = self._overtake, lambda: None
        overtake()
        return add(left, right)


def test_a_copy_that_finishes_first_makes_no_trouble(store):
    for number in range(2):
        tiles = {f"sum/{tile}": torch.full((3,), number + 1.0) for tile in "ab"}
        store.write(f"stage/node/all/0-0000{number}", Result.of_state(tiles))
    children = ("stage/node/all/0-00000", "stage/node/all/0-00001")
    job = Merge(place="stage/node/all/1-00000", name="merge", needs=children)
    settings = Settings(store=store)

    def bench(overtake) -> Bench:
        return Bench(settings, Work(make=partial(OvertakenReducer, overtake), place="stage"), ignore)

    bench(lambda: bench(lambda: None).do(job)).do(job)
    assert store.read(job.place).tensor("sum").tolist() == [3.0] * 6
    assert store.places("stage") == [job.place]


def test_trouble_that_nobody_else_has_solved_surfaces(store):
    job = Merge(place="stage/node/all/1-00000", name="merge", needs=("stage/node/all/0-0", "stage/node/all/0-1"))
    with pytest.raises(ArtifactError):
        Bench(Settings(store=store), Work(make=object, place="stage"), ignore).do(job)


def event(kind: Kind, name: str, position: int = 0) -> Event:
    return Event(kind=kind, place="stage", name=name, position=position)


def test_an_outbox_keeps_the_latest_advance_of_a_piece_and_everything_else():
    outbox = Outbox()
    told = [
        event(Kind.STARTED, "a"),
        event(Kind.ADVANCED, "a", 1),
        event(Kind.ADVANCED, "a", 2),
        event(Kind.FINISHED, "a"),
        event(Kind.ADVANCED, "b", 1),
    ]
    for one in told:
        outbox.put(one)
    assert outbox.take() == [told[0], *told[2:]]
    assert outbox.take() == []


def test_peak_memory_sees_what_is_gone_before_the_end():
    with PeakMemory() as peak:
        before = peak.bytes
        held = torch.ones(50_000_000)
        while peak.bytes < before + 150_000_000:
            pass
        del held
    assert peak.bytes >= before + 150_000_000


def test_one_of_many_short_pieces_reads_memory_when_the_last_sample_is_old_and_not_before(monkeypatch):
    reads = []
    sample = PeakMemory._sample
    monkeypatch.setattr(PeakMemory, "_sample", lambda peak: (reads.append(1), sample(peak)))
    monkeypatch.setattr("afterfit.engine.events.REST", 1e9)
    peak = first = PeakMemory()
    for _ in range(50):
        with PeakMemory(peak) as peak:
            assert peak.bytes == first.bytes > 0
    assert len(reads) == 1
    monkeypatch.setattr(PeakMemory, "_pause_s", 0.0)
    assert PeakMemory(peak).bytes > 0
    assert len(reads) == 2


def test_figures_that_appear_late_are_null_before():
    table = appended(None, "round", [(1, {"a": 0.5})])
    table = appended(table, "round", [(2, {"a": 0.25, "b": 1.0}), (3, {"b": float("inf")})])
    assert table.schema == pa.schema([("round", pa.int64()), ("a", pa.float64()), ("b", pa.float64())])
    assert table.to_pylist() == [
        {"round": 1, "a": 0.5, "b": None},
        {"round": 2, "a": 0.25, "b": 1.0},
        {"round": 3, "a": None, "b": float("inf")},
    ]
