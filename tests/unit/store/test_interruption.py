"""Races, kills, full disks and closed doors: nothing half-written is ever seen, nothing finished is lost."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from afterfit.algebra import Result
from afterfit.errors import StoreError
from afterfit.store.directory import Store, open_store
from afterfit.store.local_files import LocalFiles


def data_files(store: Store) -> list[Path]:
    return sorted(path for path in Path(store.uri).rglob("*") if path.is_file() and path.name != "manifest.json")


def test_of_two_writers_one_wins_and_the_other_clears_up(store, result):
    """Both wait for each other inside the write, so neither finds the place finished beforehand."""
    barrier = threading.Barrier(4)
    found = []

    def write(number):
        def tiles():
            barrier.wait(timeout=60)
            yield from result.tensors["image"]

        tensors = {"image": tiles(), "nothing": []}
        own = Result(tensors=tensors, tables=result.tables, facts=result.facts)
        found.append(open_store(store.uri).write("a", own, about={"writer": number}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({artifact.digest for artifact in found}) == 1
    assert len({artifact.about["writer"] for artifact in found}) == 1
    assert len(found) == 4
    assert len(data_files(store)) == 2
    store.verify("a")


RACER = """
import sys, time, torch
from afterfit.algebra import Result
from afterfit.store.directory import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    numbers = torch.arange(6.0) + number
    print(store.write(f"p/{number}", Result(tensors={"x": [("t", numbers)]})).digest, flush=True)
"""


def test_two_processes_that_write_the_same_places_get_the_same_digests(store):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=120)[0] for racer in racers]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].split()) == 20
    assert len(data_files(store)) == 20
    for place in store.places("p"):
        store.verify(place)


WRITER = """
import sys, time, torch
from afterfit.algebra import Result
from afterfit.store.directory import open_store

def tiles():
    yield "0", torch.ones(1 << 20)
    print("half", flush=True)
    time.sleep(600)

open_store(sys.argv[1]).write("a", Result(tensors={"x": tiles()}))
"""


def test_a_writer_killed_in_the_middle_leaves_the_place_missing_and_a_new_one_succeeds(store):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, store.uri], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert store.find("a") is None
    assert store.places() == []
    assert data_files(store)
    store.write("a", Result(tensors={"x": [("0", torch.ones(3))]}))
    store.verify("a")
    store.drop("a")
    assert data_files(store) == []


def test_work_that_fails_half_way_leaves_nothing(store):
    def tiles():
        yield "0", torch.ones(3)
        raise RuntimeError("the network broke")

    with pytest.raises(RuntimeError, match="the network broke"):
        store.write("a", Result(tensors={"x": tiles()}))
    assert store.find("a") is None
    assert data_files(store) == []


def test_data_stay_when_it_is_unknown_whether_the_marker_was_made(store, result, monkeypatch):
    original = LocalFiles.create

    def create_then_fail(files, path, data):
        original(files, path, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalFiles, "create", create_then_fail)
    with pytest.raises(KeyboardInterrupt):
        store.write("a", result)
    store.verify("a")


def test_a_writer_whose_own_marker_is_reported_as_taken_has_won(store, result, monkeypatch):
    """As when the answer to a conditional put gets lost and the client repeats it."""
    original = LocalFiles.create
    monkeypatch.setattr(LocalFiles, "create", lambda *args: original(*args) and False)
    store.write("a", result)
    store.verify("a")


def test_a_marker_that_is_neither_taken_nor_shown_is_an_error_after_some_tries(store, result, monkeypatch):
    monkeypatch.setattr(LocalFiles, "create", lambda *_: False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StoreError, match="neither take nor show the marker of a"):
        store.write("a", result)


class FullDisk:
    """A stream that takes some bytes and then no more."""

    def __init__(self, stream, room: int) -> None:
        self.stream = stream
        self.room = room

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, data):
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.stream.write(data)


@pytest.mark.parametrize("room", [0, 300, 600, 1100])
def test_a_full_disk_is_one_sentence_and_loses_nothing_finished(store, result, monkeypatch, room):
    finished = store.write("before", result)
    original = LocalFiles.open_output
    monkeypatch.setattr(LocalFiles, "open_output", lambda files, path: FullDisk(original(files, path), room))
    with pytest.raises(StoreError, match=r"the disk is full\. Free some space") as caught:
        store.write("a", result)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert store.find("a") is None
    assert len(data_files(store)) == 2
    store.verify("before")
    assert store.write("a", result).digest == finished.digest


def test_a_disk_that_is_full_when_a_file_is_closed_or_marked_is_the_same_sentence(store, result, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: store.write("a", result),
        lambda: store.write("b", Result()),
        lambda: store.adopt("c", []),
    ):
        with pytest.raises(StoreError, match="the disk is full"):
            write()
    monkeypatch.undo()
    assert store.places() == []
    assert data_files(store) == []


def test_bytes_that_the_disk_did_not_keep_are_noticed_before_the_marker(store, result, monkeypatch):
    original = LocalFiles.finish

    def lose_some(files, stream):
        original(files, stream)
        os.truncate(stream.name, 10)

    monkeypatch.setattr(LocalFiles, "finish", lose_some)
    with pytest.raises(StoreError, match="kept 10 of the"):
        store.write("a", result)
    assert store.find("a") is None


def test_a_file_system_without_hard_links_is_named(store, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="no hard links"):
        store.write("a", Result())


@contextmanager
def ordinary_user():
    """Permissions mean nothing to root: become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(result):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        digest = open_store(folder).write("a", result).digest
        with ordinary_user():
            if os.geteuid() != 65534:
                os.chmod(folder, 0o555)
            store = open_store(folder)
            assert store.read("a").digest == digest
            store.verify("a")
            for refused in (
                lambda: store.write("b", result),
                lambda: store.adopt("b", ["a"]),
                lambda: store.put_record("run.json", 1),
                lambda: open_store(f"{folder}/new"),
            ):
                with pytest.raises(StoreError, match=r"permission is denied\. Change the owner or the mode"):
                    refused()
            if os.geteuid() != 65534:
                os.chmod(folder, 0o755)


def test_a_store_that_may_not_be_listed_cannot_be_opened():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0)
        with ordinary_user(), pytest.raises(StoreError, match="cannot be opened: permission is denied"):
            open_store(folder)
        os.chmod(folder, 0o700)


def test_a_store_whose_path_is_a_file_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        with pytest.raises(StoreError, match="part of the path is a file"):
            open_store(str(tmp_path / path))


def test_a_half_written_marker_is_never_seen(store):
    """Readers poll while a writer, stopped between the temporary file and the link, holds the marker back."""
    gate = threading.Event()
    original = os.link

    def slow_link(source, target):
        gate.wait(timeout=60)
        original(source, target)

    os.link = slow_link
    try:
        writer = threading.Thread(target=store.write, args=("a", Result(facts={"x": 1})))
        writer.start()
        deadline = time.monotonic() + 60
        while not list(Path(store.uri).rglob(".manifest.json.*")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert store.find("a") is None
        assert store.places() == store.records() == []
        gate.set()
        writer.join()
    finally:
        os.link = original
    assert store.read("a").facts == {"x": 1}
    assert not list(Path(store.uri).rglob(".manifest.json.*"))
