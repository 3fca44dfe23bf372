"""Saves of unfinished work: the newest usable one counts, and what cannot be used is said."""

import pytest
import torch

from afterfit.algebra import Result
from afterfit.engine import cursor as cursor_module
from afterfit.engine.cursor import StoredCursor, Trail, positions
from afterfit.store.directory import open_store

PLACE = "stage/unit/shard/at"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def state(value: float) -> dict[str, torch.Tensor]:
    return {"sum/0": torch.full((300,), value), "count": torch.tensor(int(value))}


def cursor_on(store, notes=None, checkpoint_s=0.0, told=None) -> StoredCursor:
    trail = Trail(store, PLACE, checkpoint_s, (notes if notes is not None else []).append)
    return StoredCursor(trail, lambda position, total: (told if told is not None else []).append((position, total)))


def test_a_new_unit_begins_at_the_beginning(store):
    assert cursor_on(store).resume() is None


def test_work_goes_on_from_the_newest_save_and_older_ones_are_gone(store):
    told: list[tuple[int, int]] = []
    cursor = cursor_on(store, told=told)
    for position in (1, 2, 3):
        cursor.reached(position, 9, state(position))
    resumed = cursor_on(store).resume()
    assert resumed is not None
    assert resumed[0] == 3
    assert {name: tensor.tolist() for name, tensor in resumed[1].items()} == {
        name: tensor.tolist() for name, tensor in state(3).items()
    }
    assert positions(store, PLACE) == [3]
    assert told == [(1, 9), (2, 9), (3, 9)]


def test_what_was_resumed_may_be_changed_in_place(store):
    cursor_on(store).reached(1, 2, state(1))
    _, resumed = cursor_on(store).resume()
    resumed["sum/0"].add_(1)
    _, again = cursor_on(store).resume()
    assert again["sum/0"][0] == 1


def test_a_save_is_written_only_when_one_is_due(store, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(cursor_module.time, "monotonic", lambda: clock[0])
    cursor = cursor_on(store, checkpoint_s=60.0)
    for position, now in enumerate([110.0, 159.0, 160.0, 219.0, 221.0]):
        clock[0] = now
        cursor.reached(position, 5, state(position))
        if now < 160.0:
            assert positions(store, PLACE) == []
        elif now < 220.0:
            assert positions(store, PLACE) == [2]
    assert positions(store, PLACE) == [4]


def test_a_damaged_save_is_dropped_and_said_and_an_older_one_is_used(store, tmp_path):
    cursor_on(store).reached(1, 4, state(1))
    # A second writer that knows of no older save leaves two of them.
    store.write(f"{PLACE}/00000002", Result.of_state(state(2)), store.read(f"{PLACE}/00000001").about)
    [data] = (tmp_path / PLACE / "00000002").glob("*.sum.arrow")
    data.write_bytes(data.read_bytes()[:-700])
    notes: list[str] = []
    resumed = cursor_on(store, notes).resume()
    assert resumed is not None
    assert resumed[0] == 1
    assert len(notes) == 1
    assert data.name in notes[0]
    assert positions(store, PLACE) == [1]


def test_a_save_of_another_arithmetic_is_not_used_and_this_is_said(store, monkeypatch):
    cursor_on(store).reached(2, 4, state(2))
    elsewhere = {**cursor_module.arithmetic(), "device": "another GPU"}
    monkeypatch.setattr(cursor_module, "arithmetic", lambda: elsewhere)
    notes: list[str] = []
    cursor = cursor_on(store, notes)
    assert cursor.resume() is None
    assert "another GPU" in notes[0]
    cursor.reached(2, 4, state(7))
    assert cursor_on(store).resume()[1]["count"] == 7
