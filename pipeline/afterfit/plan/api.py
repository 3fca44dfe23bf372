"""The program from Python: fit a posterior, load one, predict with it."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, cast

from torch import nn

from afterfit.arithmetic import Arithmetic
from afterfit.engine import EngineName, open_engine
from afterfit.engine.shortage import memory_here
from afterfit.errors import ArtifactError, ConfigError
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Likelihood, likelihood_named
from afterfit.network.loading import load_module, put_state
from afterfit.network.settings import NetworkSettings
from afterfit.plan.execute import execute
from afterfit.plan.fitted import FitRecord, check_same_network, read_fit
from afterfit.plan.opened import Posterior
from afterfit.plan.opened_draws import OpenedDraws
from afterfit.plan.opened_queries import OpenedQueries
from afterfit.plan.opened_subspace import OpenedSubspace
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.record import NAME as RUN
from afterfit.plan.record import read_record
from afterfit.plan.request import FitRequest, Method, PosteriorKind, centre_of
from afterfit.plan.resolve import module_identity, request_from_objects
from afterfit.plan.shortage import opening, within_memory
from afterfit.resources import Memory
from afterfit.store.directory import Store, open_store
from afterfit.training.point_estimate import trained_state

Asked = Callable[[], FitRequest]
OPENED: Final[Mapping[PosteriorKind, Callable[[Network, Store, FitRecord, Asked | None], Posterior]]] = {
    "subspace": lambda network, store, record, _: OpenedSubspace(network, store, record),
    "draws": lambda network, store, record, _: OpenedDraws(network, store, record),
    "queries": OpenedQueries,
}
"""Kind of posterior -> what predicts with one, given what was asked for where that is known."""


def fit(
    network: nn.Module,
    dataset: Any,
    *,
    method: Method,
    likelihood: Literal["categorical", "bernoulli", "gaussian"] | Likelihood = "categorical",
    validation: Any = None,
    weights: str | tuple[str, ...] = "*",
    output: Literal["auto", "last_token"] = "auto",
    noise_variance: float | None = None,
    store: str | None = None,
    engine: EngineName = "inprocess",
    address: str | None = None,
    workers: int | None = None,
    memory_gb: float = 2.0,
    micro_batch: int | Literal["auto"] = "auto",
    num_shards: int | Literal["auto"] = "auto",
    fit_memory: bool = False,
    autocast: Literal["bfloat16", "float16"] | None = None,
    compiled: bool = False,
) -> Posterior:
    """Fit a posterior to a trained network, without a configuration file.

    Args:
        network: in eval mode. It is not changed, and its dtype is that of the results.
        dataset: what it was trained on: anything with a length and integer indexing whose items are mappings keyed by
            forward's argument names plus `label` or `target`.
        method: choices, e.g. `afterfit.Ella(num_features=50)`.
        likelihood: what the outputs mean.
        validation: like `dataset`; used to choose what the method leaves to "auto". Without it the marginal likelihood
            chooses.
        weights: glob or globs of the weights that the posterior covers.
        output: how outputs become one row for each example.
        noise_variance: of a Gaussian likelihood; fitted on the data by default.
        store: directory or URI; a temporary directory by default, kept as long as the posterior. The same call with
            the same store goes on where it was interrupted.
        engine: "inprocess" or "ray".
        address: of a Ray cluster; None for this machine, or for the one that this process is connected to.
        workers: Ray actors.
        memory_gb: budget of a worker for what is explicit at once.
        micro_batch: examples of a micro-batch.
        num_shards: of the data.
        fit_memory: whether to go on with a lower `memory_gb` when memory runs out; it warns, and the posterior's
            record has the value.
        autocast: to what `torch.autocast` lowers forward and backward passes of the rows, in the fit and in
            predictions; sums stay in float32.
        compiled: whether `torch.compile` makes the products with rows.

    Raises:
        ConfigError, DataError, NetworkError: for what cannot be fitted, before any long work.
        OutOfMemoryError: with the value of `memory_gb` that would fit.
    """
    scratch = tempfile.mkdtemp(prefix="afterfit-") if store is None else None
    opened = open_store(store or cast(str, scratch))
    if scratch is not None:  # goes with the store that the posterior holds, or with a fit that fails
        weakref.finalize(opened, shutil.rmtree, scratch, ignore_errors=True)
    chosen = likelihood_named(likelihood, noise_variance) if isinstance(likelihood, str) else likelihood
    data = {"train": dataset} | ({} if validation is None else {"validation": validation})
    with opening():
        request = request_from_objects(
            network,
            data,
            method,
            chosen,
            weights=weights,
            output=output,
            memory_gb=memory_gb,
            micro_batch=micro_batch,
            num_shards=num_shards,
            arithmetic=Arithmetic.of(autocast, compiled),
        )

    def attempt(request: FitRequest) -> FitRecord:
        plan = posterior_plan(request)
        with open_engine(engine, opened, address=address, workers=workers) as running:
            execute(plan, request, running, opened)
        return FitRecord.of(request, plan)

    warned = partial(warnings.warn, stacklevel=3)
    has_gpu = any(weight.is_cuda for weight in network.parameters())
    has = memory_here(has_gpu=has_gpu) if engine == "inprocess" else Memory()
    record = within_memory(request, opened, attempt, asker="fit", lowers=fit_memory, has=has, tell=warned)
    record.write(opened)
    return _opened(network, record, opened, lambda: request)


def load(uri: str, network: nn.Module | None = None) -> Posterior:
    """The posterior of a store's latest fit.

    Args:
        uri: of the store.
        network: the module, if the fit was made from one in memory; the store holds no code.

    Raises:
        ConfigError: if the store holds no finished fit, or the network is needed and missing.
        ArtifactError: if the store was made for another network or layout, or is damaged.
    """
    store = open_store(uri)
    record = read_fit(store)
    if network is not None:
        module = network
        identity = module_identity(module)
        if record.network is None and identity != record.network_identity:
            raise ArtifactError(
                f"The store {uri} was fitted for another network ({record.network_identity.get('class')}, "
                "other structure or weights); pass the network that it was fitted for."
            )
    elif record.network is None:
        raise ConfigError(f"The store {uri} was fitted from Python; pass the network: `load(uri, network=...)`.")
    else:
        settings = NetworkSettings.model_validate(record.network)
        check_same_network(settings, record.network_identity, store)
        module = load_module(settings)
    has_run = record.network is not None and store.get_record(RUN) is not None
    return _opened(module, record, store, (lambda: read_record(store).request()) if has_run else None)


def _opened(module: nn.Module, record: FitRecord, store: Store, asked: Asked | None) -> Posterior:
    """With the weights that the posterior is around in a copy of the module, unless they are its own."""
    centre = store.read(record.stages[centre_of(record.stages)])
    if not centre.facts.get("is_loaded"):
        module = put_state(module, trained_state(centre))
    choose = record.choose if isinstance(record.choose, str) else tuple(record.choose)
    view = Network(module, choose, output=cast(Any, record.output), tile_weights=record.tile_weights)
    if view.layout.fingerprint != record.fingerprint:
        raise ArtifactError(
            f"The store {store.uri} was made for other weights than the network has; load it with the network it was "
            "fitted for."
        )
    return OPENED[record.posterior](view, store, record, asked)
