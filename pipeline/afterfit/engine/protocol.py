"""What a stage of work is, and the three verbs of every engine that can run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from afterfit.algebra import Unit
from afterfit.errors import ConfigError

if TYPE_CHECKING:
    from afterfit.store.artifact import StoredArtifact

Bound = TypeVar("Bound")
Make = Callable[[], Bound]
"""Builds a worker-side object (loads network and data). Small, picklable, called once per worker."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One stage: what to build on a worker, the units to run it over, and the place that the result gets.

    Raises:
        ConfigError: if two units share a name, since they would share a place in the store.
    """

    make: Make[Any]
    place: str
    units: Sequence[Unit] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # into the final artifact and its digest
    about: Mapping[str, Any] = field(default_factory=dict)  # into its marker only, outside the digest

    def __post_init__(self) -> None:
        names = [unit.name for unit in self.units]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"Two units of {self.place} are called {twice!r}; give each its own name.")


class Engine(Protocol):
    """Runs stages somewhere. On one kind of device, where and by how many workers changes no bit of a result.

    What is in the store already is not repeated: finished units are skipped, an unfinished one goes on from
    its cursor. Errors of the work itself surface at once and unchanged, save those of memory, which become one kind;
    lost workers are replaced.

    Raises, each verb:
        OutOfMemoryError: if the work runs out of memory.
        EngineError: if workers cannot be started, or one unit loses its worker again and again.
    """

    def map(self, work: Work) -> StoredArtifact:
        """Run a `Task` over independent units.

        Returns:
            The artifact at `work.place`: the union of the units' results, in the units' order. The result of
            one unit is at "<place>/unit/<unit name>".
        """
        ...

    def reduce(self, work: Work) -> StoredArtifact:
        """Sum a `Reducer` over units, in one fixed binary tree for each tree name, and finalise the total."""
        ...

    def iterate(self, work: Work) -> StoredArtifact:
        """Run `Rounds` over the units, or, where there are no units, `Steps` in a gang.

        The artifact gets a table "progress" with the figures of every round or step, and the facts "stop"
        (why it ended, a name of `Stop` in small letters) and "num_rounds" or "num_steps".
        """
        ...
