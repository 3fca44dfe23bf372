"""Data that come after a fit: finished sums are extended by the new part, and what depends on them is made again."""

from afterfit.plan.config import RunConfig
from afterfit.plan.log import Display
from afterfit.plan.predict import settings_like
from afterfit.plan.record import RunRecord, read_record
from afterfit.plan.run import Outcome, Prepared, Where, prepare, run
from afterfit.store.directory import Store


def extend(
    store: Store, data: str, *, where: Where | None = None, display: Display | None = None
) -> tuple[Prepared, Outcome]:
    """Add training data to the store's run. The same call after an interruption goes on; it never adds data twice.

    Args:
        store: of a run.
        data: files, or a factory, with the columns of the training data.
        where: where to compute.
        display: shows progress.

    Raises:
        ConfigError, DataError: for a store without a run, or data that do not fit it.
    """
    prepared = prepare(extended(read_record(store), data), store.uri, where)
    return prepared, run(prepared, where=where, display=display, asker="later")


def extended(record: RunRecord, data: str) -> RunConfig:
    """The configuration with one more extension, or as it is where it has these data already."""
    roles = record.config.data
    added = settings_like(record, "train", data).model_copy(update={"augment": roles.train.augment})
    if added in roles.extensions.values():
        return record.config
    extensions = {**roles.extensions, f"extension_{len(roles.extensions) + 1}": added}
    return record.config.model_copy(update={"data": roles.model_copy(update={"extensions": extensions})})
