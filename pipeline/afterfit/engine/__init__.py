"""Running stages: `open_engine` gives the engine that a user named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from afterfit.engine.events import Event, Kind, Tell, ignore
from afterfit.engine.protocol import Engine, Make, Work
from afterfit.errors import ConfigError
from afterfit.resources import Resources

if TYPE_CHECKING:
    from afterfit.store.directory import Store

__all__ = ["Engine", "EngineName", "Event", "Kind", "Make", "Work", "open_engine"]

EngineName = Literal["inprocess", "ray"]


@contextmanager
def open_engine(
    name: EngineName,
    store: Store,
    *,
    address: str | None = None,
    workers: int | None = None,
    resources: Resources | None = None,
    threads: int | None = None,
    checkpoint_s: float = 60.0,
    events: Tell = ignore,
) -> Iterator[Engine]:
    """An engine, for as long as the block runs.

    Args:
        name: "inprocess", or "ray".
        store: holds everything that is finished or saved.
        address: of a Ray cluster; None starts Ray on this machine, loopback only. Where this process is
            connected to Ray already, that connection is used.
        workers: Ray actors; None for as many as the cluster can hold when the engine is opened.
        resources: of one worker; one CPU unless told.
        threads: of torch, in each worker; None for the CPUs of one worker.
        checkpoint_s: seconds between saves of unfinished work; 0 saves at every position.
        events: is told about progress.

    Raises:
        ConfigError: if the in-process engine is given a cluster or workers.
        EngineError: if Ray cannot be started or reached.
    """
    from afterfit.engine.bench import Settings
    from afterfit.engine.inprocess import inprocess_engine

    resources = resources or Resources()
    settings = Settings(
        store=store,
        threads=max(1, int(resources.num_cpus)) if threads is None else threads,
        checkpoint_s=checkpoint_s,
        resources=resources,
    )
    if name == "inprocess":
        if address is not None or workers not in (None, 1):
            raise ConfigError("The in-process engine has one worker and no cluster: choose the engine 'ray'.")
        yield inprocess_engine(settings, events)
    else:
        from afterfit.engine.ray import ray_engine

        with ray_engine(settings, events, address=address, workers=workers) as engine:
            yield engine
