"""A run that runs out of memory: told with the value that would fit, remembered, and gone on with on request."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeVar

from afterfit.errors import AfterfitError, OutOfMemoryError
from afterfit.plan.memory import memory_that_fits, remedy_without
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest
from afterfit.plan.stage import Stage
from afterfit.resources import Memory, is_out_of_memory
from afterfit.store.directory import Store

Done = TypeVar("Done")

Asker = Literal["command", "fit", "later"]
"""Who is told what would fit: `afterfit run`, `afterfit.fit`, or a command that takes the run as it is."""

REMEDIES: Final[Mapping[Asker, str]] = {
    "command": "run again with `--set memory_gb={value:g}`, or with `--fit-memory`",
    "fit": "call `fit` again with `memory_gb={value:g}`, or with `fit_memory=True`",
    "later": "run the run's configuration with `--set memory_gb={value:g}`, then this command again",
}
"""How the value is set."""


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """A stage of a store that ran out of memory."""

    lead: str  # a clause that names the stage and the budget that it had
    memory_gb: float  # that budget
    fits_gb: float | None  # the one that would fit; None if none would
    otherwise: str  # what helps then
    has_gb: float | None = None  # memory of what it ran out on, where it is known
    on_gpu: bool = False  # whether that was a GPU, or else a machine

    @classmethod
    def of(cls, error: OutOfMemoryError, request: FitRequest) -> "Shortage":
        """Counted."""
        return cls(
            lead=str(error).removesuffix("."),
            memory_gb=request.memory_gb,
            fits_gb=memory_that_fits(request, error.stage, error.has_gb),
            otherwise=remedy_without(request, error.stage),
            has_gb=error.has_gb,
            on_gpu=error.on_gpu,
        )

    def holds_with(self, has: Memory) -> bool | None:
        """Whether these devices run out as well, having no more; None where that is not known."""
        present_gb = has.gpu_gb if self.on_gpu else has.machine_gb
        return None if self.has_gb is None or present_gb is None else present_gb <= self.has_gb

    def sentence(self, asker: Asker = "command") -> str:
        """With the remedy, for one of `REMEDIES`."""
        if self.fits_gb is None:
            return f"{self.lead}, {self.otherwise}."
        return f"{self.lead}; by its counts {self.fits_gb:g} would fit: {REMEDIES[asker].format(value=self.fits_gb)}."

    def write(self, store: Store, place: str) -> None:
        """Remember it, for the plan and for `--fit-memory` of a later run."""
        store.put_record(_name(place), asdict(self))


def shortage_at(store: Store, place: str, memory_gb: float) -> Shortage | None:
    """What is remembered of a stage that is not finished, with this budget."""
    found = None if store.find(place) is not None else store.get_record(_name(place))
    return Shortage(**found) if found is not None and found["memory_gb"] == memory_gb else None


def shortages(plan: Sequence[Stage], request: FitRequest, store: Store, has: Memory) -> Iterator[Shortage]:
    """All that is remembered of a plan's unfinished stages, but what happened where there was less memory."""
    for stage in plan:
        found = shortage_at(store, stage.place, request.memory_gb)
        if found is not None and found.holds_with(has) is not False:
            yield found


def within_memory(
    request: FitRequest,
    store: Store,
    attempt: Callable[[FitRequest], Done],
    *,
    asker: Asker,
    lowers: bool,
    has: Memory,
    tell: Callable[[str], None],
) -> Done:
    """Attempt a fit. Where memory runs out, remember what would fit, and go on with that or say so.

    A value that is remembered is taken without an attempt where it is known that there is no more memory than then.

    Args:
        request: with the budget to begin with.
        store: what is finished stays there, whatever the budget; keys without a budget are not done again.
        attempt: the fit.
        asker: who is told, of `REMEDIES`.
        lowers: whether to go on.
        has: memory of the devices that will do the work.
        tell: is told, once for each value, that the fit goes on with it.

    Raises:
        OutOfMemoryError: one sentence with the value that would fit, or with what helps if none does.
    """
    while True:
        plan = posterior_plan(request)
        remembered = shortages(plan, request, store, has) if lowers else ()
        found = next((one for one in remembered if one.holds_with(has)), None)
        if found is None or found.fits_gb is None:
            try:
                return attempt(request)
            except OutOfMemoryError as error:
                found = Shortage.of(error, request)
                if not error.is_counted:
                    found.write(store, next(stage.place for stage in plan if stage.name == error.stage))
                if not lowers or found.fits_gb is None:
                    raise OutOfMemoryError(
                        found.sentence(asker), stage=error.stage, has_gb=error.has_gb, on_gpu=error.on_gpu
                    ) from error
        tell(f"{found.lead}; the run goes on with `memory_gb: {found.fits_gb:g}`.")
        request = request.with_memory(found.fits_gb)
        gc.collect()  # the failed attempt's frames hold tensors


@contextmanager
def opening() -> Iterator[None]:
    """Around what is done before any stage, with one example at a time.

    Raises:
        OutOfMemoryError: if even that is too much.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AfterfitError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "Memory ran out while the network and the first examples were opened, which `memory_gb` does not bound; "
            "take a larger machine, or a smaller network."
        ) from error


def _name(place: str) -> str:
    return f"shortages/{place.replace('/', '-')}.json"
