"""What comes after a fit, data or more draws: only what is new is computed, and what depends on it is made again."""

from typing import cast

from afterfit.errors import ConfigError
from afterfit.plan.config import RunConfig
from afterfit.plan.log import Display
from afterfit.plan.predict import settings_like
from afterfit.plan.record import RunRecord, read_record
from afterfit.plan.request import DrawsMethod
from afterfit.plan.resolve import method_named
from afterfit.plan.run import Outcome, Prepared, Where, prepare, run
from afterfit.store.directory import Store


def extend(
    store: Store,
    data: str | None = None,
    *,
    more_draws: int | None = None,
    where: Where | None = None,
    display: Display | None = None,
) -> tuple[Prepared, Outcome]:
    """Add training data, or draws, to the store's run. The same call again goes on, and adds nothing twice.

    Args:
        store: of a run.
        data: files, or a factory, with the columns of the training data.
        more_draws: how many draws the store is to hold in all.
        where: where to compute.
        display: shows progress.

    Raises:
        ConfigError, DataError: for a store without a run, nothing to add, data that do not fit it, or draws of a method
            that stores none.
    """
    if (data is None) == (more_draws is None):
        raise ConfigError("Say what to add: data with `--data`, or draws with `--more-draws`, one of the two.")
    record = read_record(store)
    config = extended(record, data) if data is not None else with_draws(record, cast(int, more_draws))
    prepared = prepare(config, store.uri, where)
    return prepared, run(prepared, where=where, display=display, asker="later")


def extended(record: RunRecord, data: str) -> RunConfig:
    """The configuration with one more extension, or as it is where it has these data already."""
    roles = record.config.data
    added = settings_like(record, "train", data).model_copy(update={"augment": roles.train.augment})
    if added in roles.extensions.values():
        return record.config
    extensions = {**roles.extensions, f"extension_{len(roles.extensions) + 1}": added}
    return record.config.model_copy(update={"data": roles.model_copy(update={"extensions": extensions})})


def with_draws(record: RunRecord, num_draws: int) -> RunConfig:
    """The configuration with so many draws in all, or as it is where it has them already.

    Raises:
        ConfigError: for a method that stores no draws, or fewer than there are.
    """
    method = method_named(record.config.method)
    if method.posterior != "draws":
        raise ConfigError(
            f"The method {method.name} stores no draws, so there is nothing for `--more-draws` to add to; "
            "`posterior.draw(seed, number)` makes as many as are wanted."
        )
    chosen = cast(DrawsMethod, method)
    held = max((chosen.num_draws, *chosen.more_draws))
    if num_draws < held:
        raise ConfigError(
            f"The run has {held} draws, and `--more-draws` says how many it is to hold in all; give more than {held}."
        )
    if num_draws == held:
        return record.config
    more = [*chosen.more_draws, num_draws]
    return record.config.model_copy(update={"method": {**record.config.method, "more_draws": more}})
