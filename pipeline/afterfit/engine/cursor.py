"""How long work remembers where it is: numbered saves in the store, of which the newest valid one counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import torch

from afterfit.algebra import Result, State
from afterfit.errors import ArtifactError

if TYPE_CHECKING:
    from afterfit.store.directory import Store


class Saved(NamedTuple):
    """A save, read."""

    position: int
    state: dict[str, torch.Tensor]
    table: pa.Table | None  # what was saved beside the state


def arithmetic() -> dict[str, Any]:
    """What decides the last bits of a sum here. Partial work goes on only where this is the same."""
    cuda = torch.cuda.is_initialized()
    device = torch.cuda.get_device_name() if cuda else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}


class Trail:
    """Saves of one growing state at "<place>/<position, 8 digits>"; an older one goes once a newer is there.

    Args:
        store: where they are.
        place: what they are below.
        checkpoint_s: seconds between saves that are offered; 0 saves all of them.
        note: is told, in a sentence, about saves that cannot be used.
    """

    def __init__(self, store: Store, place: str, checkpoint_s: float, note: Callable[[str], None]) -> None:
        self._store = store
        self._place = place
        self._checkpoint_s = checkpoint_s
        self._note = note
        self._known = positions(store, place)
        self._saved_at = time.monotonic()

    def last(self, holds: Callable[[str], bool] = lambda _: True) -> Saved | None:
        """The newest save that can be used. Those that are damaged, or of another arithmetic, are dropped."""
        while self._known:
            try:
                artifact = self._store.read(self.at(self._known[-1]))
                made_on = artifact.about.get("arithmetic")
                if made_on == arithmetic():
                    return self.read(self._known[-1], holds)
                here = words(arithmetic())
                self._note(f"{artifact.place} was saved on {words(made_on)}; it is not used on {here}.")
            except ArtifactError as error:
                self._note(f"A save cannot be used and is dropped: {error}")
            self._store.drop(self.at(self._known.pop()))
        return None

    def read(self, position: int, holds: Callable[[str], bool] = lambda _: True) -> Saved:
        """The save at `position`, in memory of its own, or the part that somebody holds."""
        artifact = self._store.read(self.at(position))
        table = artifact.table("progress") if "progress" in artifact.tables else None
        state = artifact.state()
        return Saved(position, {name: state[name] for name in state if holds(name)}, table)

    @property
    def is_due(self) -> bool:
        """Whether `checkpoint_s` have passed since the last save."""
        return time.monotonic() - self._saved_at >= self._checkpoint_s

    def offer(self, position: int, make: Callable[[], Result]) -> None:
        """Save what `make` gives, if a save is due."""
        if self.is_due:
            self._store.write(self.at(position), make(), about={"arithmetic": arithmetic()})
            self.kept(position)

    def kept(self, position: int) -> None:
        """A save was written: drop older ones."""
        for older in [known for known in self._known if known < position]:
            self._store.drop(self.at(older))
        self._known = [position]
        self._saved_at = time.monotonic()

    def clear(self) -> None:
        """Drop all of them."""
        self._known = []
        self._store.drop(self._place)

    def at(self, position: int) -> str:
        """The place of a save."""
        return f"{self._place}/{position:08d}"


class StoredCursor:
    """The `Cursor` of one unit.

    Args:
        trail: where the saves go.
        advanced: is told the position and the total.
    """

    def __init__(self, trail: Trail, advanced: Callable[[int, int], None]) -> None:
        self._trail = trail
        self._advanced = advanced

    def resume(self) -> tuple[int, State] | None:
        """The newest usable save."""
        saved = self._trail.last()
        return saved and (saved.position, saved.state)

    def reached(self, position: int, total: int, state: State) -> None:
        """Tell, and save if a save is due."""
        self._trail.offer(position, partial(Result.of_state, state))
        self._advanced(position, total)


def positions(store: Store, place: str) -> list[int]:
    """Numbers of the saves directly below `place`, ascending."""
    names = (found.removeprefix(f"{place}/") for found in store.places(place))
    return sorted(int(name) for name in names if name.isdigit())


def words(made_on: Any) -> str:
    """An arithmetic, for people."""
    return ", ".join(f"{name} {value}" for name, value in (made_on or {"unknown": "arithmetic"}).items())
