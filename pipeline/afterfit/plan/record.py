"""The record `run.json` of a store: what was run there, so that everything after it needs only the store."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from afterfit.data.settings import DataSettings
from afterfit.errors import ArtifactError, ConfigError
from afterfit.layout import Layout
from afterfit.network.likelihoods import likelihood_named
from afterfit.plan.bench import DataSource, NetworkSource
from afterfit.plan.config import RunConfig
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import method_named
from afterfit.plan.stage import Stage
from afterfit.rows.counts import Counts
from afterfit.rows.coverage import Coverage
from afterfit.store.directory import Store, open_store
from afterfit.training.loaded import LoadedWeights
from afterfit.training.point_estimate import PointEstimate

NAME = "run.json"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its store remembers it."""

    config: RunConfig
    stages: Mapping[str, str]  # stage name -> place
    sizes: Mapping[str, Any]  # what was measured of network and data

    @classmethod
    def of(cls, config: RunConfig, request: FitRequest, plan: Sequence[Stage]) -> "RunRecord":
        """Of a run that is about to begin."""
        sizes = {
            "network": request.network.identity,
            "layout": request.layout.record(),
            "num_outputs": request.num_outputs,
            "state_bytes": request.state_bytes,
            "micro_batch": request.micro_batch,
            "forward_flops": request.forward_flops,
            "coverage": None if request.coverage is None else asdict(request.coverage),
            "data": {
                role: {
                    "identity": source.identity,
                    "num_examples": source.num_examples,
                    "num_shards": source.num_shards,
                    "settings": None if source.settings is None else source.settings.model_dump(mode="json"),
                }
                for role, source in request.data.items()
            },
        }
        return cls(config=config, stages={stage.name: stage.place for stage in plan}, sizes=sizes)

    def write(self, store: Store) -> None:
        """Over the record of an earlier run in the same store."""
        store.put_record(
            NAME,
            {
                "format": FORMAT,
                "config": self.config.model_dump(mode="json"),
                "stages": dict(self.stages),
                "sizes": dict(self.sizes),
            },
        )

    def request(self) -> FitRequest:
        """The request again, without opening network or data; its plan has the keys of the run."""
        config, sizes = self.config, self.sizes
        likelihood = likelihood_named(config.likelihood.name, config.likelihood.noise_variance)
        choose = config.network.choose
        return FitRequest(
            network=NetworkSource(
                identity=sizes["network"],
                settings=config.network,
                weights=choose if isinstance(choose, str) else tuple(choose),
                output=config.network.output,
                tile_weights=config.tile_weights,
            ),
            training=LoadedWeights() if config.training is None else PointEstimate(config.training, likelihood),
            layout=Layout.from_record(sizes["layout"]),
            num_outputs=sizes["num_outputs"],
            state_bytes=sizes["state_bytes"],
            likelihood=likelihood,
            method=method_named(config.method),
            data={
                role: DataSource(
                    identity=source["identity"],
                    num_examples=source["num_examples"],
                    num_shards=source["num_shards"],
                    settings=source["settings"] and DataSettings.model_validate(source["settings"]),
                )
                for role, source in sizes["data"].items()
            },
            in_distribution=tuple(config.data.evaluation),
            out_of_distribution=tuple(config.data.out_of_distribution),
            extensions=tuple(config.data.extensions),
            link=config.prediction.link,
            num_draws=config.prediction.num_draws,
            by=config.prediction.by,
            memory_gb=config.memory_gb,
            micro_batch=sizes["micro_batch"],
            has_auto_micro_batch=config.micro_batch == "auto",
            arithmetic=config.rows,
            forward_flops=sizes["forward_flops"],
            coverage=_coverage(sizes["coverage"]),
        )


def _coverage(found: Mapping[str, Any] | None) -> Coverage | None:
    """From JSON, which has lists for tuples."""
    return None if found is None else Coverage(**{**found, "counts": tuple(Counts(*each) for each in found["counts"])})


def read_record(store: Store) -> RunRecord:
    """The record of the store's last run.

    Raises:
        ConfigError: if nothing was run there.
        ArtifactError: if it is damaged, or another version of afterfit wrote it.
    """
    found = store.get_record(NAME)
    if found is None:
        raise ConfigError(f"There is no run in the store {store.uri}; give the store of an `afterfit run`.")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ArtifactError(
            f"{NAME} in the store {store.uri} was not written by this version of afterfit; "
            "run `afterfit run` with the same configuration again, what is finished is kept."
        )
    try:
        config = RunConfig.model_validate(found["config"])
        return RunRecord(config=config, stages=found["stages"], sizes=found["sizes"])
    except (KeyError, ValidationError) as error:
        raise ArtifactError(
            f"{NAME} in the store {store.uri} is damaged; run `afterfit run` with its configuration again."
        ) from error


def existing_store(uri: str) -> Store:
    """A store that is there already.

    Raises:
        ConfigError: if a local one is not.
    """
    if "://" not in uri and not Path(uri).expanduser().is_dir():
        raise ConfigError(f"There is no store at {uri!r}; give the store of an `afterfit run`.")
    return open_store(uri)
