"""Predictions of new data by a finished run: the same stages under the same store, so they resume as well."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq

from afterfit.data.identity import IdentifiedExamples, check_unchanged
from afterfit.data.origin import open_origin
from afterfit.data.scratch import scratch_folder
from afterfit.data.settings import Columns, DataSettings, NumericColumns, Standardise
from afterfit.data.shards import shard_ranges
from afterfit.errors import ConfigError, DataError, OutOfMemoryError
from afterfit.plan.bench import Bench, DataSource, opened_data
from afterfit.plan.fitted import check_same_network
from afterfit.plan.log import Display
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.record import RunRecord, read_record
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import REFERENCE_FLOPS, count_first
from afterfit.plan.run import Where, finish
from afterfit.plan.shortage import Shortage, opening
from afterfit.plan.stage import Stage
from afterfit.posterior.links import Link
from afterfit.store.artifact import StoredArtifact
from afterfit.store.directory import Store
from afterfit.store.files import files_at

ROLE = "new"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Where predictions went."""

    out: str
    num_rows: int
    columns: Sequence[str]
    was_done: bool  # whether they were in the store already


def predict(
    store: Store,
    data: str,
    out: str,
    *,
    link: Link | None = None,
    where: Where | None = None,
    display: Display | None = None,
) -> Predicted:
    """Predict new data and write one Parquet file, an example a row; see `Predictions` for its columns.

    Args:
        store: of a finished run.
        data: path, folder, glob or URI with the columns of the run's own data, labels not needed; or the
            `package.module:function` of a factory.
        out: path or URI (s3://, gs://) of the file; one that is there is replaced.
        link: the run's own by default.
        where: to compute it.
        display: shows progress.

    Raises:
        ConfigError: if the run is not finished, or `out` names no file.
        DataError: if the data do not have the columns.
        ArtifactError: if the network's files have changed since the run.

    Cost: one pass of rows over the data, kept in the store under the data's identity. Holds the file in
    memory.
    """
    folder, name = folder_and_name(out)
    record = read_record(store)
    check_same_network(record.config.network, record.sizes["network"], store)
    settings = settings_like(record, next(iter(record.config.data.evaluation), "train"), data)
    examples = opened_data(settings, store)
    request = with_new(record.request(), settings, examples)
    plan = predicting(request, link)
    for stage in plan:
        if not (stage.name == f"predictions-{ROLE}" or _is_of_new(stage)) and store.find(stage.place) is None:
            raise ConfigError(
                f"The run in {store.uri} is not finished, {stage.place} is missing; "
                "run `afterfit run` with its configuration first."
            )
    if request.method.posterior == "queries":  # which are answered by passes over the training data
        train = cast(IdentifiedExamples, _bench(plan[-1], request, store).data("train"))
        check_unchanged(train, request.data["train"].identity)
    _check_forward(plan, request, store, examples)
    try:
        ran, _ = finish(plan, request, store, where=where, display=display)
    except OutOfMemoryError as error:
        # From the run's recorded sizes alone: the failed frames are still alive, and no pass would fit beside them.
        said = Shortage.of(error, request).sentence("later")
        raise OutOfMemoryError(said, stage=error.stage, has_gb=error.has_gb, on_gpu=error.on_gpu) from error
    made = ran[f"predictions-{ROLE}"]
    content, columns = _parquet(made.artifact)
    files_at(folder).replace(name, content)
    return Predicted(out=out, num_rows=request.data[ROLE].num_examples, columns=columns, was_done=made.was_done)


def _check_forward(plan: Sequence[Stage], request: FitRequest, store: Store, examples: IdentifiedExamples) -> None:
    """Refuse new data that the network does not take, before long work."""
    missing = (stage for stage in plan if _is_of_new(stage) and store.find(stage.place) is None)
    if (first := next(missing, None)) is not None:
        with opening():
            count_first(_bench(first, request, store).network, examples, ROLE)


def _bench(stage: Stage, request: FitRequest, store: Store) -> Bench:
    """That of a stage, in this process."""
    return Bench(request.bench(store.uri, {role: above.place for role, above in stage.inputs.items()}))


def _is_of_new(stage: Stage) -> bool:
    """Whether it makes outputs of the new data: under all of the posterior, under a chunk of draws, or by queries."""
    return stage.name in (f"features-{ROLE}", f"covariance-{ROLE}") or stage.name.startswith(f"features-{ROLE}-")


def predicting(request: FitRequest, link: Link | None) -> list[Stage]:
    """The run's own stages, which are finished, then features and predictions of the new data."""
    plan = [stage for stage in posterior_plan(request) if stage.name != "scores"]
    if link is None:
        return plan
    # The request's link is part of the tuning: only the last stage gets the other one.
    return [
        replace(stage, recipe=replace(stage.recipe, link=link))  # type: ignore[type-var]
        if stage.name == f"predictions-{ROLE}"
        else stage
        for stage in plan
    ]


def with_new(request: FitRequest, settings: DataSettings, examples: IdentifiedExamples) -> FitRequest:
    """The run's request with the new data as all there is to predict, whole."""
    seconds = request.forward_flops * (1 + 2 * request.num_outputs) / REFERENCE_FLOPS
    source = DataSource(
        identity=examples.identity(),
        num_examples=examples.num_examples,
        num_shards=len(shard_ranges(examples.num_examples, seconds)),
        settings=settings,
    )
    data = {**request.data, ROLE: source}
    return replace(request, data=data, in_distribution=(), out_of_distribution=(ROLE,), whole=(ROLE,))


def settings_like(record: RunRecord, role: str, data: str) -> DataSettings:
    """How new data are read: by the columns of the run's data that play a role.

    Labels and targets are read where there are any. Columns that were standardised by measured numbers are
    standardised by the same numbers.

    Raises:
        DataError: if there are no data, or an input's column is missing.
    """
    roles = record.config.data
    like = roles.evaluation.get(role, roles.train)
    is_factory = FACTORY.fullmatch(data) is not None and not Path(data).exists()
    origin = {"factory": data} if is_factory else {"path": data}
    measured = record.sizes["data"][role]["identity"].get("scales", {})
    bare = DataSettings.model_validate(origin)
    pieces = open_origin(bare, scratch_folder(), None, None).pieces
    if not pieces:
        raise DataError(f"There are no data at {data!r}; give a file with the columns of the run's own data.")
    columns = _columns(like.columns, measured, set(pieces[0].columns))
    return DataSettings.model_validate({**origin, "columns": columns})


def _columns(like: Columns, measured: Mapping[str, Any], present: set[str]) -> Columns:
    inputs = dict(like.inputs)
    for name, reader in like.inputs.items():
        if isinstance(reader, NumericColumns) and name in measured:
            inputs[name] = reader.model_copy(update={"standardise": Standardise(**measured[name])})
    label = like.label if like.label in present else None
    target, scale = like.target, like.target_standardise
    if target is None or not set([target] if isinstance(target, str) else target) <= present:
        target = scale = None
    elif scale is not None and "target" in measured:
        scale = Standardise(**measured["target"])
    if not inputs and label is None and target is None:
        # Without named inputs every other column is one; a factory's own names for the answers still hold.
        label = "label" if "label" in present else None
        target = "target" if "target" in present and label is None else None
    return Columns(label=label, target=target, target_standardise=scale, inputs=inputs)


def _parquet(artifact: StoredArtifact) -> tuple[bytes, Sequence[str]]:
    """The table, shard by shard, as one file; and its columns."""
    sink = pa.BufferOutputStream()
    parts = artifact.parts or (artifact,)
    schema = parts[0].table("predictions").schema
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.table("predictions"))
    return sink.getvalue().to_pybytes(), schema.names


def folder_and_name(out: str, example: str = "predictions.parquet") -> tuple[str, str]:
    """A file's address as a place that files are written below, and a name in it."""
    if "://" in out:
        address = urlsplit(out)
        folder, _, name = address.path.rpartition("/")
        where = urlunsplit(address._replace(path=folder))
    else:
        path = Path(out).expanduser()
        where, name = str(path.absolute().parent), path.name
        if path.is_dir():
            name = ""
    if not name:
        raise ConfigError(f"{out!r} names no file; end it with a name, as in `results/{example}`.")
    return where, name
