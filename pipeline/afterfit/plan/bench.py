"""What a worker needs to take part in a fit, as a small record that can be sent, and opened there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from torch import nn

from afterfit.algebra import Artifact, Examples, Reducer, Rounds, Steps, Task
from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.data.examples import IdentifiedExamples, open_examples
from afterfit.data.settings import DataSettings
from afterfit.data.shards import shard_ranges
from afterfit.errors import ArtifactError
from afterfit.layout import Layout
from afterfit.network.functional import Network
from afterfit.network.loading import load_module, put_state
from afterfit.network.settings import NetworkSettings
from afterfit.network.workbench import Recipe
from afterfit.store.directory import Store, open_store
from afterfit.store.keys import content_key
from afterfit.training.point_estimate import trained_state


@dataclass(frozen=True)
class NetworkSource:
    """Where a worker gets the network from: settings that it loads, or a module that is sent."""

    identity: Mapping[str, Any]
    settings: NetworkSettings | None = None
    module: nn.Module | None = None
    weights: str | tuple[str, ...] = "*"
    output: str = "auto"
    tile_weights: int | None = None

    def __hash__(self) -> int:
        return hash(repr(self.identity))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSource) and self._compared == other._compared

    @property
    def _compared(self) -> tuple[Any, ...]:
        """All but where the network is got from."""
        return self.identity, self.weights, self.output, self.tile_weights


@dataclass(frozen=True)
class DataSource:
    """A data set that plays a role: settings that a worker opens, or examples that are sent."""

    identity: Any
    num_examples: int
    num_shards: int
    settings: DataSettings | None = None
    examples: Examples | None = None

    @property
    def shards(self) -> Sequence[range]:
        """The fixed shard table."""
        return shard_ranges(self.num_examples, 0.0, self.num_shards)


@dataclass(frozen=True)
class BenchSpec:
    """Everything a recipe is bound to, by reference. Sent to workers; never part of a key."""

    store_uri: str
    network: NetworkSource
    data: Mapping[str, DataSource]
    layout: Layout
    num_outputs: int
    state_bytes: int
    memory_gb: float
    micro_batch: int
    forward_flops: float = 0.0  # of one example
    arithmetic: Arithmetic = PLAIN
    device: str | None = None  # to put the network on; by default it stays where it is
    inputs: Mapping[str, str] = field(default_factory=dict)  # role -> place in the store


@dataclass(frozen=True, eq=False)
class Bench:
    """A worker's side of a stage: sizes at once, weights and data when they are asked for."""

    spec: BenchSpec

    @property
    def layout(self) -> Layout:
        """Of the chosen weights."""
        return self.spec.layout

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.spec.num_outputs

    @property
    def memory_gb(self) -> float:
        """Budget of what is explicit at once."""
        return self.spec.memory_gb

    @property
    def micro_batch(self) -> int:
        """Examples of a micro-batch."""
        return self.spec.micro_batch

    @property
    def forward_flops(self) -> float:
        """Of one example, counted."""
        return self.spec.forward_flops

    @property
    def arithmetic(self) -> Arithmetic:
        """In which rows are made."""
        return self.spec.arithmetic

    @property
    def state_bytes(self) -> int:
        """Of one number of a sum over data."""
        return self.spec.state_bytes

    def num_examples(self, role: str) -> int:
        """Length of the data set that plays a role."""
        return self.spec.data[role].num_examples

    def shards(self, role: str) -> Sequence[range]:
        """Its fixed shard table."""
        return self.spec.data[role].shards

    def input(self, role: str) -> Artifact:
        """The finished artifact that plays a role, opened once."""
        return self._inputs(role)

    @cached_property
    def _inputs(self) -> Any:
        store = open_store(self.spec.store_uri)
        return lru_cache(maxsize=None)(lambda role: store.read(self.spec.inputs[role]))

    @property
    def network(self) -> Network:
        """The network with the weights of the point estimate.

        Raises:
            ArtifactError: if it has not the layout that was planned for, as when its code has changed since.
        """
        network = _network(self.spec.store_uri, self.spec.network, self.spec.inputs.get("network"), self.spec.device)
        if network.layout.fingerprint != self.spec.layout.fingerprint:
            raise ArtifactError(
                f"The network has other weights than the store {self.spec.store_uri} was made for; "
                "bring back the network of then, or run `afterfit run` for the one of now."
            )
        return network

    def data(self, role: str) -> Examples:
        """The data set that plays a role, opened once a worker."""
        source = self.spec.data[role]
        if source.examples is not None:
            return source.examples
        assert source.settings is not None
        known = json.dumps(source.identity, sort_keys=True)
        return _examples(self.spec.store_uri, source.settings.model_dump_json(), known)


@lru_cache(maxsize=1)
def _network(store_uri: str, source: NetworkSource, place: str | None, device: str | None) -> Network:
    """Cached for a process, so that stage after stage on one worker loads the weights once."""
    artifact = open_store(store_uri).read(place) if place else None
    state = trained_state(artifact) if artifact is not None and not artifact.facts.get("is_loaded") else None
    if source.module is None:
        assert source.settings is not None
        module = load_module(source.settings)
    else:
        module = source.module
    module = put_state(module, state)
    if device is not None:
        module = module.to(device)
    return Network(module, source.weights, output=source.output, tile_weights=source.tile_weights)  # type: ignore[arg-type]


@lru_cache(maxsize=16)
def _examples(store_uri: str, settings: str, _identity: str) -> Examples:
    """Cached for a process; by identity too, since files may change between two runs of a notebook."""
    return opened_data(DataSettings.model_validate_json(settings), open_store(store_uri))


def opened_data(settings: DataSettings, store: Store) -> IdentifiedExamples:
    """A data set; an iterable is cut into the store once, at a place named by its settings."""
    return open_examples(settings, shelf=store, place=f"data/{content_key(settings, {})}")


@dataclass(frozen=True)
class Bind:
    """Called once on each worker: the recipe bound to a bench there."""

    recipe: Recipe
    spec: BenchSpec

    def __call__(self) -> Task | Reducer | Rounds | Steps:
        """What the engine runs."""
        return self.recipe.on(Bench(self.spec))
