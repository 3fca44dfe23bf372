"""A fit in a process that notes what it does, and that is killed at one named moment or byte.

Moments, each a line of the log after the process id:
    start P    work on the artifact at place P begins
    item P/n   the n-th item of what is saved below P is computed, and not yet saved
    write P/f  file f of P is opened; with an offset, that many of its bytes are written
    kept P/f n file f of P is closed and has n bytes
    mark P     the data of P are complete and its marker is written under a hidden name, not yet linked
    done P     the marker of P is visible
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# Imported here, in the process that others are forked from, so that each of them starts at once.
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo

import afterfit.methods.ella
import afterfit.methods.ggn_nystrom  # noqa: F401
from afterfit.engine.cursor import Trail
from afterfit.engine.jobs import Finalise, Merge, RunUnit, SumUnit
from afterfit.engine.protocol import Engine, Work
from afterfit.store.artifact import StoredArtifact
from afterfit.store.local_files import LocalFiles
from small_fits import run_fit


@dataclass(frozen=True, kw_only=True)
class Doom:
    """What is noted, and when to die. Dies once: whoever takes the place of the dead lives on."""

    log: Path
    moment: str = ""
    offset: int = 0  # bytes of a file that is written
    forgets: bool = False  # saves are not found again: to see that it is noticed

    def note(self, moment: str) -> None:
        """We are here; die if this is the moment."""
        with self.log.open("a") as log:
            log.write(f"{os.getpid()} {moment}\n")
        if moment == self.moment and not moment.startswith("write "):
            self.die()

    def die(self) -> None:
        """By kill -9, unless somebody has died already."""
        try:
            self.log.with_suffix(".died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class DoomedStream:
    """A file that is being written; the process dies at a byte of it."""

    def __init__(self, stream: BinaryIO, doom: Doom) -> None:
        self._stream = stream
        self._doom = doom
        self._left = doom.offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> BinaryIO:
        return self._stream.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)

    def write(self, data: bytes) -> int:
        """Up to the byte."""
        memory = memoryview(data).cast("B")
        if memory.nbytes > self._left:
            self._stream.write(memory[: self._left])
            self._stream.flush()
            self._doom.die()
            memory, self._left = memory[self._left :], 1 << 62
        self._left -= memory.nbytes
        return self._stream.write(memory)


_installed: list[Doom] = []


def install(doom: Doom) -> None:
    """Note every moment of this process from now on. A process serves one doom at a time."""
    if _installed:
        _installed[:] = [doom]
        return
    _installed.append(doom)
    for kind in (RunUnit, SumUnit, Merge, Finalise):
        _before(kind, "run", lambda job, *_: _note(f"start {job.place}"))
    _before(Trail, "offer", lambda trail, position, _: _note(f"item {trail._place}/{position:08d}"))
    link, last = os.link, Trail.last
    create, open_output, finish = LocalFiles.create, LocalFiles.open_output, LocalFiles.finish
    marking: list[str] = []

    def noted_create(files: LocalFiles, path: str, data: bytes) -> bool:
        marking[:] = [path.rpartition("/")[0]]
        made = create(files, path, data)
        _note(f"done {marking[0]}")
        return made

    def noted_link(source: Any, target: Any) -> None:
        _note(f"mark {marking[0]}")
        link(source, target)

    def noted_output(files: LocalFiles, path: str) -> Any:
        stream = open_output(files, path)
        moment = f"write {_without_attempt(path)}"
        _note(moment)
        return DoomedStream(stream, _installed[0]) if moment == _installed[0].moment else stream

    def noted_finish(files: LocalFiles, stream: Any) -> None:
        size = stream.tell()
        finish(files, stream)
        _note(f"kept {_without_attempt(os.path.relpath(stream.name, files.uri))} {size}")

    changed: Any = LocalFiles
    changed.create, changed.open_output, changed.finish = noted_create, noted_output, noted_finish
    os.link = noted_link  # type: ignore[assignment]
    os.fsync = lambda _: None  # what is killed leaves its pages to the kernel; only power cuts need it
    patched: Any = Trail
    patched.last = lambda trail, *given: None if _installed[0].forgets else last(trail, *given)


def _note(moment: str) -> None:
    _installed[0].note(moment)


def _without_attempt(path: str) -> str:
    """Place and kind of a data file, whatever the attempt that its name begins with."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name.partition('.')[2]}"


def _before(kind: type, name: str, say: Callable[..., None]) -> None:
    original = getattr(kind, name)

    def noted(*arguments: Any) -> Any:
        say(*arguments)
        return original(*arguments)

    setattr(kind, name, noted)


@dataclass(frozen=True)
class Planted:
    """Builds what a worker needs; already on its way there, it brings the doom."""

    make: Callable[[], Any]
    doom: Doom

    def __call__(self) -> Any:
        """Builds it."""
        return self.make()

    def __reduce__(self) -> tuple[Any, ...]:
        return planted, (self.make, self.doom)


def planted(make: Callable[[], Any], doom: Doom) -> Planted:
    """Unpickled on a worker."""
    install(doom)
    return Planted(make, doom)


@dataclass(frozen=True)
class DoomedEngine:
    """An engine whose workers are doomed."""

    engine: Engine
    doom: Doom

    def map(self, work: Work) -> StoredArtifact:
        """See `Engine.map`."""
        return self.engine.map(self._planted(work))

    def reduce(self, work: Work) -> StoredArtifact:
        """See `Engine.reduce`."""
        return self.engine.reduce(self._planted(work))

    def iterate(self, work: Work) -> StoredArtifact:
        """See `Engine.iterate`."""
        return self.engine.iterate(self._planted(work))

    def _planted(self, work: Work) -> Work:
        return replace(work, make=Planted(work.make, self.doom))


def main(fit: str, uri: str, doom: Doom, options: Mapping[str, Any]) -> None:
    """A run in a process of its own; leaves the digests beside the log."""
    torch.set_num_threads(1)
    install(doom)
    made = run_fit(fit, uri, around=lambda engine: DoomedEngine(engine, doom), **options)
    doom.log.with_suffix(".digests").write_text(json.dumps(made))


def start(forks: ForkServerContext, fit: str, uri: str, doom: Doom, **options: Any) -> int | None:
    """Run `main` in another process to its end; returns its exit code, negative for a signal."""
    doom.log.with_suffix(".digests").unlink(missing_ok=True)
    process = forks.Process(target=main, args=(fit, uri, doom, options))
    process.start()
    process.join()
    return process.exitcode


def forks_of(*modules: str) -> ForkServerContext:
    """A server that has these modules imported, and forks a process in no time."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


class Line(NamedTuple):
    """Of the log."""

    pid: int
    kind: str
    subject: str


def lines_of(log: Path) -> Iterator[Line]:
    """The whole lines of a log, in order."""
    for line in log.read_text().splitlines():
        pid, kind, subject = line.split(" ", 2)
        yield Line(int(pid), kind, subject)


def digests_of(log: Path) -> dict[str, str]:
    """What a run left: place -> digest."""
    return json.loads(log.with_suffix(".digests").read_text())


def recomputed(lines: Sequence[Line]) -> list[str]:
    """Artifacts begun though they were finished, and items computed though a later or equal one was saved."""
    finished: set[str] = set()
    saved: dict[str, str] = {}
    again = []
    for _, kind, subject in lines:
        below, _, number = subject.rpartition("/")
        if kind == "done":
            finished.add(subject)
            saved[below] = max(saved.get(below, ""), number)
        is_again = kind == "start" and subject in finished
        if is_again or (kind == "item" and number <= saved.get(below, "")):
            again.append(f"{kind} {subject}")
    return again
