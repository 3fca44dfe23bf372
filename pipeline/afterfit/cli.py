"""The `afterfit` command. Thin: torch and everything heavy is imported when a command needs it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from afterfit.errors import AfterfitError

if TYPE_CHECKING:
    from rich.console import Console

    from afterfit.plan.progress import Bars, Lines
    from afterfit.plan.run import Outcome, Prepared, Where

app = typer.Typer(
    name="afterfit",
    help="Calibrated uncertainty for trained networks: fit a posterior over the weights, on one machine or "
    "on Ray. Every step is kept in a store; running the same command again goes on from there.",
    epilog="Exit codes: 0 done, 1 failed or interrupted, 2 bad input. Start with: afterfit run configs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class EngineOption(StrEnum):
    """Where a command computes."""

    inprocess = "inprocess"
    ray = "ray"


class LinkOption(StrEnum):
    """From the Gaussian over outputs to probabilities."""

    monte_carlo = "monte_carlo"
    probit = "probit"
    laplace_bridge = "laplace_bridge"


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set a field, e.g. method.num_features=50. Repeatable."),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URI", help="Folder, s3:// or gs://; by default the config's, or runs/NAME."),
]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Store of an earlier `afterfit run`.")]
Engine = Annotated[EngineOption, typer.Option("--engine", help="Compute in this process, or on Ray workers.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="A", help="Ray cluster, e.g. auto or ray://host:10001; none starts Ray here."),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Ray workers; as many as fit by default.")]
Gpus = Annotated[float, typer.Option("--gpus", min=0, help="GPUs of each Ray worker; parts of one are shared.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of torch in each worker.")]
FitMemory = Annotated[
    bool, typer.Option("--fit-memory", help="When memory runs out, lower memory_gb to what fits, and go on.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DATA = typer.Option(
    "--data",
    metavar="URI",
    help="File, folder, glob or URI with the columns of the run's data, or package.module:function.",
)
Data = Annotated[str, DATA]
MoreData = Annotated[str | None, DATA]
MoreDraws = Annotated[
    int | None,
    typer.Option("--more-draws", min=1, metavar="N", help="Draws to hold in all, of a method that stores them."),
]


@app.command()
def run(
    config: Config,
    set_: Set = None,
    store: StoreOption = None,
    engine: Engine = EngineOption.inprocess,
    address: Address = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    threads: Threads = None,
    fit_memory: FitMemory = False,
    debug: Debug = False,
) -> None:
    """Fit a posterior, and score it against the network alone.

    Prints the plan and its cost, then progress, then scores and what each stage took. The same command again
    goes on where it was interrupted, and redoes only what a changed field changes.
    """
    with _answering(debug):
        from afterfit.plan.config import read_config

        settings = read_config(config, set_ or [])
        where = store or settings.where
        with _interruptible(f"the store {where} keeps what is finished, and the same command goes on from there"):
            from afterfit.plan.run import prepare
            from afterfit.plan.run import run as run_plan
            from afterfit.plan.tables import plan_table

            console = _console()
            there = _where(engine, address, workers, gpus, threads)
            prepared = prepare(settings, store, there)
            console.print(plan_table(prepared))
            with _display(console) as display:
                outcome = run_plan(prepared, where=there, display=display, fit_memory=fit_memory)
            _show(console, prepared, outcome)


@app.command()
def plan(config: Config, set_: Set = None, store: StoreOption = None, debug: Debug = False) -> None:
    """Show stages, keys, what is done, and what the rest will cost; runs nothing."""
    with _answering(debug):
        from afterfit.plan.config import read_config

        settings = read_config(config, set_ or [])
        from afterfit.plan.run import prepare
        from afterfit.plan.tables import plan_table

        _console().print(plan_table(prepare(settings, store)))


@app.command()
def status(store: StoreArgument, debug: Debug = False) -> None:
    """Show how far the run in a store is, and what its stages took."""
    with _answering(debug):
        from afterfit.plan.record import existing_store
        from afterfit.plan.run import status as status_of
        from afterfit.plan.tables import status_table

        opened = existing_store(store)
        record, stages = status_of(opened)
        console = _console()
        console.print(f"{record.config.name}, method {record.config.method['name']}, in {opened.uri}", markup=False)
        console.print(status_table(stages))


@app.command()
def methods(debug: Debug = False) -> None:
    """List the methods, their sources, and their fields with defaults."""
    with _answering(debug):
        from rich.table import Table

        from afterfit.plan.tables import method_cards

        console = _console()
        for card in method_cards():
            console.print(f"\n[bold]{card.name}[/]  {card.summary}", highlight=False)
            console.print(f"Source: {card.source}", markup=False, highlight=False)
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for name in ("field", "default", "meaning"):
                table.add_column(name)
            for field in card.fields:
                table.add_row(*field)
            console.print(table)


@app.command()
def prune(
    store: StoreArgument,
    out: Annotated[str, typer.Option("--out", metavar="URI", help="Safetensors file to write; local, s3:// or gs://.")],
    log_alpha: Annotated[float, typer.Option("--log-alpha", help="Of the noise, from which a weight is pruned.")] = 3.0,
    debug: Debug = False,
) -> None:
    """Write the network that variational dropout leaves: zeros where noise drowns a weight."""
    with _answering(debug):
        from afterfit.plan.prune import prune as prune_run
        from afterfit.plan.record import existing_store

        made = prune_run(existing_store(store), out, log_alpha)
        console = _console()
        console.print(
            f"Wrote {made.out}: {made.sparsity:.1%} of the noisy weights are zero; {made.compression:.1f} times fewer "
            "weights in all.",
            markup=False,
        )
        for role, (mean, pruned) in made.accuracy.items():
            console.print(
                f"Accuracy on {role}: {mean:.4f} by the means of all weights, {pruned:.4f} pruned.", markup=False
            )


@app.command()
def predict(
    store: StoreArgument,
    data: Data,
    out: Annotated[str, typer.Option("--out", metavar="URI", help="Parquet file to write; local, s3:// or gs://.")],
    link: Annotated[LinkOption | None, typer.Option("--link", help="Instead of the run's own.")] = None,
    engine: Engine = EngineOption.inprocess,
    address: Address = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Predict new data with a finished run; one row an example, the network alone beside the posterior."""
    with (
        _answering(debug),
        _interruptible(f"the store {store} is kept, and the same command goes on from there"),
    ):
        from afterfit.plan.predict import predict as predict_data
        from afterfit.plan.record import existing_store

        console = _console()
        with _display(console) as display:
            made = predict_data(
                existing_store(store),
                data,
                out,
                link=None if link is None else link.value,
                where=_where(engine, address, workers, gpus, threads),
                display=display,
            )
        before = " that were in the store already" if made.was_done else ""
        console.print(
            f"Wrote {made.num_rows} predictions{before} to {made.out}: {', '.join(made.columns)}.",
            markup=False,
        )


@app.command()
def extend(
    store: StoreArgument,
    data: MoreData = None,
    more_draws: MoreDraws = None,
    engine: Engine = EngineOption.inprocess,
    address: Address = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Add training data to a finished run without redoing its sums, or draws to those that it has stored."""
    with (
        _answering(debug),
        _interruptible(f"the store {store} is kept, and the same command goes on from there"),
    ):
        from afterfit.plan.extend import extend as extend_run
        from afterfit.plan.record import existing_store

        console = _console()
        with _display(console) as display:
            where = _where(engine, address, workers, gpus, threads)
            prepared, outcome = extend_run(
                existing_store(store), data, more_draws=more_draws, where=where, display=display
            )
        _show(console, prepared, outcome)


def main() -> None:
    """Entry point of the command."""
    app()


def _console() -> Console:
    from rich.console import Console

    # Without a terminal the width is the reader's affair: wide enough that no table is cut.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _display(console: Console) -> Bars | Lines:
    from afterfit.plan.progress import Bars, Lines

    return Bars(console) if console.is_terminal else Lines(console)


def _where(engine: EngineOption, address: str | None, workers: int | None, gpus: float, threads: int | None) -> Where:
    from afterfit.plan.run import Where

    return Where(engine=engine.value, address=address, workers=workers, gpus=gpus, threads=threads)


def _show(console: Console, prepared: Prepared, outcome: Outcome) -> None:
    """Scores, stages, notes, and where everything is."""
    from afterfit.plan.page import write_page
    from afterfit.plan.tables import outcome_tables

    if outcome.did_nothing:
        console.print("Nothing was to be done: every stage is in the store.")
    for table in outcome_tables(outcome):
        console.print(table)
    for note in outcome.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    console.print(f"Store: {outcome.store.uri}", markup=False, soft_wrap=True)
    page = write_page(prepared, outcome)
    if page is not None:
        console.print(f"Report: {page}", markup=False, soft_wrap=True)


@contextmanager
def _answering(debug: bool) -> Iterator[None]:
    """Errors become one sentence and an exit code; `--debug` shows where they came from."""
    try:
        yield
    except AfterfitError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except Exception as error:  # the outermost boundary: nothing above could say more
        if isinstance(error, typer.Exit | typer.Abort):
            raise
        if debug:
            traceback.print_exc()
        first = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
        typer.echo(f"Error: unexpected error ({what}); run again with --debug to see where.", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _interruptible(sentence: str) -> Iterator[None]:
    """Ctrl-C ends the command with a sentence that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: {sentence}.", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    main()
