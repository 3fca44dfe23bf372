"""From a configuration, or from objects in a notebook, to a request: everything opened, measured and checked."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from afterfit.algebra import full_batch
from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.data.examples import IdentifiedExamples
from afterfit.data.indexed import IndexedExamples
from afterfit.data.settings import DataSettings
from afterfit.data.shards import shard_ranges
from afterfit.errors import ConfigError, DataError
from afterfit.methods import METHODS
from afterfit.network.functional import Network
from afterfit.network.identity import identity
from afterfit.network.likelihoods import Likelihood, likelihood_named
from afterfit.network.loading import load_network
from afterfit.network.tokens import TokenCategorical
from afterfit.plan.bench import DataSource, NetworkSource, opened_data
from afterfit.plan.config import RunConfig
from afterfit.plan.request import Choosy, DrawsMethod, FitRequest, Method
from afterfit.precision import state_dtype
from afterfit.resources import is_out_of_memory
from afterfit.rows.tape import TapeBackend
from afterfit.store.directory import Store
from afterfit.training.loaded import LoadedWeights
from afterfit.training.point_estimate import PointEstimate

REFERENCE_FLOPS = 3e10
"""Rate of the device that shards are sized for, in FLOP/s: one core of a server CPU on small layers. A constant, never
a measurement: the shard table is part of what fixes the bits."""


def method_named(choices: Mapping[str, Any]) -> Method:
    """The method that a configuration describes.

    Raises:
        ConfigError: for an unknown method or a mistake in its choices.
    """
    name = choices.get("name", "ella")
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    module, _, attribute = METHODS[name].partition(":")
    try:
        return getattr(import_module(module), attribute).model_validate(choices)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"method.{first['loc'][0]}"  # what follows in a location is a member of a union
        same = [mistake["msg"] for mistake in error.errors() if mistake["loc"][0] == first["loc"][0]]
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(getattr(import_module(module), attribute).model_fields))
            raise ConfigError(f"There is no field {place!r}; {name} has {known}.") from error
        said = ", or ".join(dict.fromkeys(f"{text[:1].lower()}{text[1:]}" for text in same))
        raise ConfigError(f"{place}: {said}.") from error


def request_of(config: RunConfig, store: Store) -> FitRequest:
    """Open network and data of a configuration."""
    roles: dict[str, DataSettings] = {"train": config.data.train}
    if config.data.validation is not None:
        roles["validation"] = config.data.validation
    named = (config.data.extensions, config.data.evaluation, config.data.out_of_distribution)
    for name, settings in (item for group in named for item in group.items()):
        if name in roles:
            raise ConfigError(f"Two data sets play the role {name!r}; give each its own name.")
        roles[name] = settings
    method = method_named(config.method)
    likelihood = likelihood_named(config.likelihood.name, config.likelihood.noise_variance)
    _check_exact(method, likelihood, config.network.output)
    examples = {role: opened_data(settings, store) for role, settings in roles.items()}
    network = load_network(config.network)
    if config.tile_weights is not None:
        network = Network(
            network.module, config.network.choose, output=config.network.output, tile_weights=config.tile_weights
        )
    source = NetworkSource(
        identity=identity(config.network),
        settings=config.network,
        weights=_patterns(config.network.choose),
        output=config.network.output,
        tile_weights=config.tile_weights,
    )
    training = LoadedWeights() if config.training is None else PointEstimate(config.training, likelihood)
    request = _measured(
        FitRequest(
            network=source,
            training=training,
            layout=network.layout,
            num_outputs=0,
            state_bytes=state_dtype(network.dtype).itemsize,
            likelihood=likelihood,
            method=method,
            data={},
            extensions=tuple(config.data.extensions),
            in_distribution=tuple(config.data.evaluation),
            out_of_distribution=tuple(config.data.out_of_distribution),
            link=config.prediction.link,
            num_draws=config.prediction.num_draws,
            by=config.prediction.by,
            memory_gb=config.memory_gb,
            arithmetic=config.rows,
        ),
        network,
        examples,
        config.micro_batch,
        config.num_shards,
    )
    settled = {role: replace(source, settings=roles[role], examples=None) for role, source in request.data.items()}
    return replace(request, data=settled)


def request_from_objects(
    network: nn.Module,
    data: Mapping[str, Any],
    method: Method,
    likelihood: Likelihood,
    *,
    in_distribution: tuple[str, ...] = (),
    out_of_distribution: tuple[str, ...] = (),
    weights: str | tuple[str, ...] = "*",
    output: str = "auto",
    memory_gb: float = 2.0,
    micro_batch: int | str = "auto",
    num_shards: int | str = "auto",
    tile_weights: int | None = None,
    arithmetic: Arithmetic = PLAIN,
) -> FitRequest:
    """A request from a module and data sets in memory; workers are sent both."""
    _check_exact(method, likelihood, output)
    view = Network(network, weights, output=output, tile_weights=tile_weights)  # type: ignore[arg-type]
    examples = {role: given if hasattr(given, "identity") else IndexedExamples(given) for role, given in data.items()}
    source = NetworkSource(
        identity=module_identity(network), module=network, weights=weights, output=output, tile_weights=tile_weights
    )
    return _measured(
        FitRequest(
            network=source,
            training=LoadedWeights(),
            layout=view.layout,
            num_outputs=0,
            state_bytes=state_dtype(view.dtype).itemsize,
            likelihood=likelihood,
            method=method,
            data={},
            in_distribution=in_distribution,
            out_of_distribution=out_of_distribution,
            memory_gb=memory_gb,
            arithmetic=arithmetic,
        ),
        view,
        examples,
        micro_batch,
        num_shards,
    )


def _check_exact(method: Method, likelihood: Likelihood, output: str) -> None:
    """Every method predicts a covariance between all outputs of an example."""
    if output == "tokens":
        raise ConfigError(
            f"The method {method.name} has no use for the logits of all tokens; set `output` to `last_token`, or call "
            "`afterfit.rows.ggn_times`."
        )
    if isinstance(likelihood, TokenCategorical):
        raise ConfigError(
            f"The method {method.name} needs exact cotangents, which the tokens likelihood does not have; fit the last "
            "token with `likelihood: categorical` and `output: last_token`, or call `afterfit.rows.ggn_times`."
        )


def _measured(
    request: FitRequest,
    network: Network,
    examples: Mapping[str, IdentifiedExamples],
    micro: int | str,
    num_shards: int | str,
) -> FitRequest:
    """With outputs and FLOPs counted on first examples, every label checked, and shards laid out."""
    outputs, flops = count_first(network, examples["train"], "train"), _forward_flops(network, examples["train"])
    backend = TapeBackend(network, request.memory_gb, request.arithmetic)
    coverage = backend.coverage(full_batch(examples["train"], [0]))
    is_auto = micro == "auto"
    sized = replace(request, num_outputs=outputs, forward_flops=flops, coverage=coverage, has_auto_micro_batch=is_auto)
    sized = sized.with_memory(request.memory_gb) if is_auto else replace(sized, micro_batch=int(micro))
    if isinstance(request.method, Choosy):
        request.method.check_network(network, examples["train"], sized.micro_batch)
    # A forward pass, and for each of the C rows about two: one to the activations and one to the weights.
    seconds = flops * (1 + 2 * outputs) / REFERENCE_FLOPS
    wanted = None if num_shards == "auto" else int(num_shards)
    data = {}
    for role, opened in examples.items():
        if role != "train":
            count_first(network, opened, role)
        if role not in request.out_of_distribution and not (role == "train" and _has_own_loss(request.method)):
            try:
                request.likelihood.check(opened.targets(), outputs)
            except DataError as error:
                raise DataError(f"In the data set {role!r}: {error}") from error
        shards = shard_ranges(opened.num_examples, seconds, wanted)
        data[role] = DataSource(
            identity=opened.identity(), num_examples=opened.num_examples, num_shards=len(shards), examples=opened
        )
    return replace(sized, data=data)


def _has_own_loss(method: Method) -> bool:
    return method.posterior == "draws" and cast(DrawsMethod, method).loss is not None


def count_first(network: Network, examples: IdentifiedExamples, role: str) -> int:
    """Outputs C of the first example's forward pass.

    Raises:
        ConfigError: if forward does not take the data's keys.
        DataError: if forward fails on the example, or its outputs are not finite.
    """
    inputs = full_batch(examples, [0]).inputs
    try:
        with torch.no_grad():
            outputs_1C = network(inputs)
    except TypeError as error:
        raise ConfigError(
            f"The network's forward does not take the inputs {', '.join(inputs)} of the data set {role!r} ({error}); "
            "name the columns after forward's arguments."
        ) from error
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise DataError(
            f"The network fails on the first example of the data set {role!r} ({reason}; {shapes}); "
            "check that the data are those that the network is made for."
        ) from error
    if not bool(torch.isfinite(outputs_1C).all()):
        raise DataError(
            f"The network's output on the first example of the data set {role!r} is not finite; check data and weights."
        )
    return outputs_1C.shape[1]


def _forward_flops(network: Network, examples: IdentifiedExamples) -> float:
    """Of the first example; two for each weight where the counter fails, as on some functions of autograd."""
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(full_batch(examples, [0]).inputs)
    except AssertionError:
        return 2.0 * network.layout.num_weights
    return float(counter.get_total_flops())


def _patterns(choose: str | list[str]) -> str | tuple[str, ...]:
    return choose if isinstance(choose, str) else tuple(choose)


def module_identity(module: nn.Module) -> dict[str, Any]:
    """Of a module in memory: its structure and every number of its state."""
    digest = sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else str(tensor.item()).encode()
        )
    return {"class": type(module).__qualname__, "sha256": digest.hexdigest()}
