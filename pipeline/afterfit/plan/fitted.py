"""What a store remembers of its latest fit, so that a posterior loads from the store alone. Plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.errors import ArtifactError, ConfigError
from afterfit.network.identity import identity
from afterfit.network.settings import NetworkSettings
from afterfit.plan.request import FitRequest, PosteriorKind
from afterfit.plan.stage import Stage
from afterfit.store.directory import Store

NAME = "fit.json"
FORMAT = 1


class FitRecord(BaseModel):
    """Written over by every finished fit; the artifacts that it names stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    network: dict[str, Any] | None  # settings that load it; None for a module in memory
    network_identity: dict[str, Any]
    posterior: PosteriorKind = "subspace"
    stages: dict[str, str]  # stage -> place in the store, in the plan's order
    fingerprint: str  # of the layout
    tile_weights: int
    choose: str | list[str]
    output: str
    memory_gb: float
    micro_batch: int
    arithmetic: Arithmetic = PLAIN

    @classmethod
    def of(cls, request: FitRequest, plan: Sequence[Stage]) -> FitRecord:
        """Of a finished fit."""
        source = request.network
        return cls(
            network=None if source.settings is None else source.settings.model_dump(mode="json"),
            network_identity=dict(source.identity),
            posterior=request.method.posterior,
            stages={stage.name: stage.place for stage in plan},
            fingerprint=request.layout.fingerprint,
            tile_weights=request.layout.tile_weights,
            choose=source.weights if isinstance(source.weights, str) else list(source.weights),
            output=source.output,
            memory_gb=request.memory_gb,
            micro_batch=request.micro_batch,
            arithmetic=request.arithmetic,
        )

    def write(self, store: Store) -> None:
        """Over the record of an earlier fit."""
        store.put_record(NAME, self.model_dump(mode="json"))


def read_fit(store: Store) -> FitRecord:
    """The latest fit of a store.

    Raises:
        ConfigError: if the store has none.
        ArtifactError: if it is damaged, or another version of the program wrote it.
    """
    raw = store.get_record(NAME)
    if raw is None:
        raise ConfigError(f"The store {store.uri} holds no finished fit; run `afterfit run` with it first.")
    written = raw.get("format") if isinstance(raw, dict) else None
    if written != FORMAT:
        raise ArtifactError(
            f"{NAME} in the store {store.uri} is in format {written}, and this version reads {FORMAT}; "
            "use the version that wrote it, or run the fit again, what is finished is kept."
        )
    try:
        return FitRecord.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(
            f"{NAME} in the store {store.uri} is damaged; run the fit again, what is finished is kept."
        ) from error


def check_same_network(settings: NetworkSettings, then: Mapping[str, Any], store: Store) -> None:
    """Refuse a network whose files are not those that were fitted. Reads every weight file once.

    Raises:
        ArtifactError: if they have changed.
    """
    if identity(settings) != then:
        raise ArtifactError(
            f"The network's files are not those that the store {store.uri} was fitted for; bring those back, or run "
            "`afterfit run` for these."
        )
