"""Whatever engine, however many workers, whatever is killed: the same bits, and nothing is done twice."""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from afterfit.algebra import merge_in_order
from afterfit.engine import Kind
from afterfit.errors import EngineError, NumericalError
from afterfit.store.directory import open_store
from laws.toys import TOYS, main, run_toys

UNITS_OR_ROUNDS = ["map", "reduce", "forest", "rounds"]

# Ray Train copies Ray Data's settings, some of which warn about themselves even at their defaults (Ray 2.60).
ray_data_warns_of_itself = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:ray.data.context")


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Digests of all that an uninterrupted in-process run leaves."""
    folder = tmp_path_factory.mktemp("expected")
    return run_toys(list(TOYS), str(folder / "store"), folder / "log").digests


def of_toys(expected: Mapping[str, str], *toys: str) -> dict[str, str]:
    return {place: digest for place, digest in expected.items() if place.split("/")[1] in toys}


def done_twice(log: Path) -> list[str]:
    """Moments of folding that were lived more than once."""
    lines = Counter(log.read_text().splitlines())
    return [line for line, times in lines.items() if times > 1 and line.split()[0] in ("accumulate", "leaf")]


def test_the_toys_would_notice_another_order_of_addition(tmp_path):
    run = run_toys(["map"], str(tmp_path / "store"), tmp_path / "log")
    units = open_store(str(tmp_path / "store")).read("toy/map").tiles("sum")
    parts = [units[name] for name in units if name.endswith("00000")]
    in_order, in_turn = merge_in_order(lambda a, b: a + b, parts), sum(parts[1:], parts[0])
    assert len(run.digests) == 6
    assert not in_order.equal(in_turn)


def test_nothing_but_results_stays_in_the_store(expected):
    units = {f"toy/map/unit/shard-{index}" for index in range(5)}
    assert set(expected) == units | {f"toy/{toy}" for toy in TOYS}


def test_a_second_run_does_nothing(tmp_path, expected):
    first = run_toys(list(TOYS), str(tmp_path / "store"), tmp_path / "first")
    again = run_toys(list(TOYS), str(tmp_path / "store"), tmp_path / "again")
    assert first.digests == again.digests == expected
    assert not (tmp_path / "again").exists()
    assert again.events == []


@pytest.mark.parametrize(
    ("toy", "moment"),
    [
        ("map", "accumulate shard-2 2"),
        ("map", "write shard-3-00001"),
        ("reduce", "accumulate shard-0 0"),
        ("reduce", "accumulate shard-3 3"),
        ("reduce", "merge sum/00001 -"),
        ("reduce", "merge count/all 16"),
        ("reduce", "finalise"),
        ("reduce", "write 00001"),
        ("forest", "merge tree-1/only -"),
        ("rounds", "leaf 2 shard-1 1"),
        ("rounds", "advance 3"),
        ("rounds", "finalise"),
        ("steps", "step 3 slice 2"),
        ("steps", "finalise"),
        ("sharded", "step 3 slice 2"),
        ("sharded", "finalise"),
    ],
)
def test_a_killed_process_goes_on_where_it_was(tmp_path, forks, expected, toy, moment):
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    process = forks.Process(target=main, args=(toy, uri, log, {"kill_at": moment}))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert run_toys([toy], uri, log).digests == of_toys(expected, toy)
    assert done_twice(log) == ([moment] if moment.split()[0] in ("accumulate", "leaf") else [])


def test_an_interrupted_process_goes_on_where_it_was(tmp_path, forks, expected):
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    stop_driver(forks, signal.SIGINT, "reduce", uri, log, "accumulate shard-2 1", {})
    assert run_toys(["reduce"], uri, log).digests == of_toys(expected, "reduce")
    assert len(done_twice(log)) <= 1


def test_partial_rounds_of_another_arithmetic_start_again_and_say_so(tmp_path):
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    with pytest.raises(NumericalError):
        run_toys(["rounds"], uri, log, fail_at="leaf 2 shard-3 0", threads=2)
    run = run_toys(["rounds"], uri, log, threads=1)
    assert any("threads 2" in note and "threads 1" in note for note in run.notes)
    assert Counter(log.read_text().splitlines())["leaf 2 shard-1 0"] == 2


@pytest.mark.parametrize(("toy", "again"), [("map", "accumulate shard-1 0"), ("reduce", "accumulate shard-1 0")])
def test_finished_pieces_of_another_arithmetic_are_made_again_and_this_is_said(tmp_path, expected, toy, again):
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    with pytest.raises(NumericalError):
        run_toys([toy], uri, log, fail_at="accumulate shard-3 0", threads=2)
    run = run_toys([toy], uri, log, threads=1)
    assert any("finished pieces were made on" in note and "threads 1" in note for note in run.notes)
    assert Counter(log.read_text().splitlines())[again] == 2
    assert run.digests == of_toys(expected, toy)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray_gives_the_bits_of_the_in_process_engine(tmp_path, ray_address, expected, workers):
    uri = str(tmp_path / "store")
    run = run_toys(UNITS_OR_ROUNDS, uri, tmp_path / "log", name="ray", workers=workers)
    assert run.digests == of_toys(expected, *UNITS_OR_ROUNDS)
    finished = {(event.place, event.name) for event in run.events if event.kind == Kind.FINISHED}
    assert {("toy/map", f"shard-{index}") for index in range(5)} <= finished
    # A note may be the driver's own: on a busy machine it says that it waits for CPUs.
    done = [event for event in run.events if event.kind is not Kind.NOTE]
    assert all(event.peak_bytes > 0 and event.pid != os.getpid() for event in done)


@pytest.mark.ray
def test_lost_workers_are_replaced_and_units_go_on_from_their_cursors(tmp_path, ray_address, expected):
    uri = str(tmp_path / "store")
    moments = {
        "map": "write shard-3-00001",
        "reduce": "accumulate shard-2 2",
        "forest": "merge tree-0/only -",
    }
    for toy, moment in moments.items():
        log = tmp_path / toy
        run = run_toys([toy], uri, log, name="ray", workers=2, kill_at=moment)
        assert any("was lost" in note for note in run.notes), toy
        assert done_twice(log) == ([moment] if toy == "reduce" else [])
    assert run.digests == of_toys(expected, *moments)


@pytest.mark.ray
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_after_the_loss_of_the_driver_the_same_command_goes_on(tmp_path, ray_address, forks, expected, sign):
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    options = {"name": "ray", "workers": 2, "address": ray_address}
    stop_driver(forks, sign, "reduce", uri, log, "accumulate shard-2 1", options)
    run = run_toys(["reduce"], uri, log, name="ray", workers=2)
    assert run.digests == of_toys(expected, "reduce")
    # Each of two workers may be in the middle of a batch, and the dead driver's may make one more.
    assert len(done_twice(log)) <= 4


@pytest.mark.ray
def test_an_error_of_the_work_surfaces_at_once_as_it_is(tmp_path, ray_address):
    log = tmp_path / "log"
    with pytest.raises(NumericalError) as caught:
        run_toys(["map"], str(tmp_path / "store"), log, name="ray", workers=1, fail_at="accumulate shard-1 1")
    assert type(caught.value) is NumericalError
    assert str(caught.value) == "The toy broke down at 'accumulate shard-1 1'."
    assert any("in accumulate" in note for note in caught.value.__notes__)
    assert done_twice(log) == []


@pytest.mark.ray
def test_a_unit_that_loses_every_worker_is_given_up_by_name(tmp_path, ray_address):
    options = {"name": "ray", "workers": 1, "kill_at": "accumulate shard-1 2", "deaths": 99}
    with pytest.raises(EngineError, match="'shard-1' of toy/map lost its worker 4 times"):
        run_toys(["map"], str(tmp_path / "store"), tmp_path / "log", **options)
    assert Counter((tmp_path / "log").read_text().splitlines())["accumulate shard-1 1"] == 1


@pytest.mark.ray
@ray_data_warns_of_itself
def test_a_gang_of_one_on_ray_gives_the_bits_of_the_in_process_engine_after_a_failure(tmp_path, ray_address, expected):
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    with pytest.raises(NumericalError, match="broke down at 'step 2 slice 4'"):
        run_toys(["steps"], uri, log, name="ray", workers=1, fail_at="step 2 slice 4")
    run = run_toys(["steps", "sharded"], uri, log, name="ray", workers=1)
    assert run.digests == of_toys(expected, "steps", "sharded")
    assert run.events[-1].kind == Kind.FINISHED


@pytest.mark.ray
@ray_data_warns_of_itself
@pytest.mark.parametrize(("toy", "workers"), [("steps", 3), ("sharded", 2)])
def test_a_larger_gang_gives_the_same_bits_after_the_loss_of_a_worker(tmp_path, ray_address, expected, toy, workers):
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    run = run_toys([toy], uri, log, name="ray", workers=workers, kill_at="step 4 slice 0")
    assert any("lost a worker" in note for note in run.notes)
    assert run.digests == of_toys(expected, toy)
    assert Counter(log.read_text().splitlines())["step 1 slice 0"] == 1


def stop_driver(forks: Any, sign: int, toy: str, uri: str, log: Path, moment: str, options: Mapping[str, Any]) -> None:
    """Run a toy slowly in another process, and send it a signal once it has come to a moment."""
    process = forks.Process(target=main, args=(toy, uri, log, {"pause_s": 0.05, **options}))
    process.start()
    give_up = time.monotonic() + 120
    while not (log.exists() and moment in log.read_text().splitlines()):
        assert process.is_alive()
        assert time.monotonic() < give_up
        time.sleep(0.01)
    os.kill(process.pid, sign)
    process.join()
    assert process.exitcode != 0
    assert "finalise" not in log.read_text()
