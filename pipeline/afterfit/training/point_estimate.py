"""The point estimate of a network that is trained here: AdamW, in steps that a gang makes together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Protocol

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from afterfit.algebra import Artifact, Batch, Gang, Progress, Result, State, Stop, Unit
from afterfit.errors import ConfigError, DataError, NumericalError
from afterfit.network.likelihoods import Categorical, Gaussian, Likelihood
from afterfit.network.noise import named_noise
from afterfit.network.workbench import Outline, Workbench
from afterfit.precision import CORE, dot, state_dtype
from afterfit.seeds import Seed
from afterfit.training.checkpointing import refuse_reentrant
from afterfit.training.schedule import Schedule
from afterfit.training.settings import TrainingSettings

WEIGHT, BUFFER, FIRST, SECOND = "weight", "buffer", "first_moment", "second_moment"


@dataclass(frozen=True)
class PointEstimate:
    """Trains the network from the weights it has. A Gaussian of unknown noise is trained with variance 1."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "iterate"

    settings: TrainingSettings
    likelihood: Likelihood

    def units(self, outline: Outline) -> Sequence[Unit]:
        """None: a gang cuts steps into slices instead."""
        return []

    def on(self, bench: Workbench) -> "Training":
        """Needs the network as it comes, and the training data.

        Raises:
            ConfigError: for label smoothing without classes, or a pattern in `train` that chooses nothing.
            DataError: for targets that do not fit the likelihood, or too few examples for the slices.
        """
        return Training(self.settings, self.likelihood, bench)


class Noisy(Protocol):
    """Noise on the weights while they are trained: what is fitted of it, and its price."""

    @property
    def free(self) -> Mapping[str, Tensor]:
        """Further parameters by name, as they start."""
        ...

    def sampled(self, weights: Mapping[str, Tensor], num_examples: int) -> AbstractContextManager[object]:
        """Inside, the network runs with noise, on so many examples; `weights` has the further parameters too."""
        ...

    def price(self, weights: Mapping[str, Tensor], step: int) -> Tensor:
        """In nats for all examples together; added to their negative log density."""
        ...


class Training:
    """Steps over minibatches. A state holds weights, buffers and AdamW's moments, flat, about 3 P numbers.

    A step costs one forward and backward pass over the batch, and holds P gradients a slice of this worker.
    """

    def __init__(
        self, settings: TrainingSettings, likelihood: Likelihood, bench: Workbench, noise: Noisy | None = None
    ):
        if settings.label_smoothing and likelihood.name != Categorical.name:
            raise ConfigError(f"The {likelihood.name} likelihood has no classes; remove `label_smoothing`.")
        if isinstance(likelihood, Gaussian) and likelihood.noise_variance is None:
            likelihood = Gaussian(1.0)
        self.settings = settings
        self.likelihood = likelihood
        self.network = bench.network
        self.examples = bench.data("train")
        likelihood.check(self.examples.targets(), bench.num_outputs)
        self.schedule = Schedule(settings, self.examples.num_examples)
        if self.schedule.epochs.smallest_batch < settings.num_slices:
            raise DataError(
                f"A batch of {self.schedule.epochs.smallest_batch} examples cannot be cut into "
                f"{settings.num_slices} slices; lower `num_slices` or give more data."
            )
        self.seed = Seed(settings.seed, ("training",))
        self.num_slices = settings.num_slices
        self.num_steps = self.schedule.epochs.num_steps
        self.noise = noise
        self._free = {} if noise is None else dict(noise.free)
        self._weights = trained_weights(self.network.module, settings.train) | self._free
        self._buffers = _saved_buffers(self.network.module)
        self._is_looked_at = False

    def init(self) -> State:
        """The weights that the network comes with, moments of zero."""
        state = {_key(WEIGHT, name, value): value.detach().reshape(-1).clone() for name, value in self._weights.items()}
        state |= {_key(BUFFER, name, value): value.reshape(-1).clone() for name, value in self._buffers.items()}
        for moment in (FIRST, SECOND):
            state |= {
                _key(moment, name, value): torch.zeros_like(value).reshape(-1) for name, value in self._weights.items()
            }
        return state

    def step(self, state: State, number: int, gang: Gang) -> tuple[State, Progress]:
        """One update by the mean gradient over the minibatch.

        Raises:
            NumericalError: if the loss or the gradient is not finite.
        """
        state = {name: value.to(self.network.device) for name, value in state.items()}
        with _train_mode(self.network.module):
            parts = [self._slice(state, number, which) for which in gang.mine]
        total = gang.sum(parts)
        count = len(self.schedule.epochs.batch(number))
        loss = float(total["figure/loss"]) / count
        gradients = [total[f"gradient/{name}"].to(self.network.device) / count for name in self._weights]
        figures = {"loss": loss, "learning_rate": self.schedule.learning_rate(number)}
        if self.noise is not None:
            gradients, price = self._priced(gradients, state, number)
            figures["price"] = price
        length = math.sqrt(sum(float(dot(gradient, gradient)) for gradient in gradients))
        if not (math.isfinite(loss) and math.isfinite(length)):
            raise NumericalError(
                f"The training loss is {loss} at step {number}; lower `learning_rate` or set `gradient_clip`."
            )
        clip = self.settings.gradient_clip
        if clip is not None and length > clip:
            gradients = [gradient * (clip / length) for gradient in gradients]
        self._update(state, gradients, number, figures["learning_rate"])
        for name, value in self._buffers.items():
            mean = total[f"buffer/{name}"].to(self.network.device)
            state[_key(BUFFER, name, value)] = (mean / count if value.is_floating_point() else mean).to(value.dtype)
        if "figure/correct" in total:
            figures["accuracy"] = float(total["figure/correct"]) / count
        return state, Progress(Stop.FINISHED if number + 1 == self.num_steps else None, figures)

    def finalise(self, state: State, progress: pa.Table) -> Result:
        """Families of weights and buffers by dtype, flat; the table `progress`; the shapes as facts."""
        places = {_key(WEIGHT, name, value): (name, value) for name, value in self._weights.items()}
        places |= {_key(BUFFER, name, value): (name, value) for name, value in self._buffers.items()}
        kept = Result.of_state({place: state[place] for place in places})
        entries = {name: [place.partition("/")[0], list(value.shape)] for place, (name, value) in places.items()}
        facts = {"trained": True, "steps": self.num_steps, "state": entries}
        return Result(tensors=kept.tensors, tables={"progress": progress}, facts=facts)

    def _slice(self, state: State, number: int, which: int) -> State:
        """Summed gradients, figures and moved buffers of one slice."""
        batch = self.examples.batch(self.schedule.slice(number, which))
        weights = self.leaves(state)
        # Train mode moves running statistics in place: each slice moves its own copy from the same start.
        buffers = {
            name: state[_key(BUFFER, name, value)].view(value.shape).clone() for name, value in self._buffers.items()
        }
        device = self.network.device
        sampled = nullcontext() if self.noise is None else self.noise.sampled(weights, len(batch))
        given = {name: weight for name, weight in weights.items() if name not in self._free}
        with named_noise(self.seed.child("dropout", number, which), device), self._autocast(), sampled:
            outputs_BC = self.network(batch.inputs, {**given, **buffers})
        targets = targets_of(batch).to(device)
        loss = self._loss(outputs_BC, targets)
        if not self._is_looked_at:
            refuse_reentrant(loss)
            self._is_looked_at = True
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        part = {
            f"gradient/{name}": (torch.zeros_like(weight) if gradient is None else gradient).reshape(-1)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
        for name, value in buffers.items():
            share = len(batch) if value.is_floating_point() else int(which == 0)  # counters: the first slice's
            part[f"buffer/{name}"] = value.reshape(-1) * share
        part["figure/loss"] = loss.detach().to(CORE).reshape(1)
        correct = self._correct(outputs_BC.detach(), targets)
        if correct is not None:
            part["figure/correct"] = correct.reshape(1)
        return part

    def leaves(self, state: State) -> dict[str, Tensor]:
        """Weights of a state by name, shaped, to be differentiated by."""
        return {
            name: state[_key(WEIGHT, name, value)].view(value.shape).detach().requires_grad_()
            for name, value in self._weights.items()
        }

    def _priced(self, gradients: list[Tensor], state: State, number: int) -> tuple[list[Tensor], float]:
        """Gradients with that of the price, once for all slices and workers; and the price, nats an example."""
        assert self.noise is not None
        weights = self.leaves(state)
        price = self.noise.price(weights, number) / self.examples.num_examples
        if not price.requires_grad:
            return gradients, float(price)
        found = torch.autograd.grad(price, list(weights.values()), allow_unused=True)
        pairs = zip(gradients, found, strict=True)
        return [data if own is None else data + own.reshape(-1) for data, own in pairs], float(price.detach())

    def _loss(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.settings.label_smoothing
        if smoothing:
            wide_BC = outputs_BC.to(state_dtype(outputs_BC.dtype))
            return nn.functional.cross_entropy(wide_BC, targets.long(), reduction="sum", label_smoothing=smoothing)
        return -self.likelihood.log_density(outputs_BC, targets).sum()

    def _correct(self, outputs_BC: Tensor, targets: Tensor) -> Tensor | None:
        """How many examples are predicted right, as a float64; None for numbers."""
        if self.likelihood.name == Gaussian.name:
            return None
        if self.likelihood.name == Categorical.name:
            return (outputs_BC.argmax(dim=1) == targets).sum().to(CORE)
        return ((outputs_BC > 0) == (targets.reshape(outputs_BC.shape) > 0)).all(dim=1).sum().to(CORE)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.settings.autocast is not None)

    def _update(self, state: State, gradients: list[Tensor], number: int, rate: float) -> None:
        """AdamW in the memory of the state. One tensor after another: fused kernels may round otherwise."""
        for (name, value), gradient in zip(self._weights.items(), gradients, strict=True):
            self._move(state, name, value, gradient, number, rate)

    def _move(self, state: State, name: str, value: Tensor, gradient: Tensor, number: int, rate: float) -> None:
        weight, first, second = (state[_key(kind, name, value)] for kind in _MOVED)
        with torch.no_grad():
            adamw(
                [weight],
                [gradient],
                [first],
                [second],
                [],
                [torch.tensor(float(number))],
                foreach=False,
                fused=False,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=rate,
                weight_decay=0.0 if name in self._free else self.settings.weight_decay,
                eps=1e-8,
                maximize=False,
            )


_MOVED = (WEIGHT, FIRST, SECOND)


def trained_state(artifact: Artifact) -> dict[str, Tensor]:
    """Weights and buffers by name, shaped, as a module's `state_dict` has them; read lazily tile by tile."""
    entries: Mapping[str, tuple[str, list[int]]] = artifact.facts["state"]
    families = {family: artifact.tiles(family) for family, _ in entries.values()}
    return {name: families[family][name].reshape(shape) for name, (family, shape) in entries.items()}


def _key(kind: str, name: str, value: Tensor) -> str:
    """Where a tensor lies in the state; a family has one dtype."""
    return f"{kind}_{str(value.dtype).removeprefix('torch.')}/{name}"


def trained_weights(module: nn.Module, patterns: str | Sequence[str]) -> dict[str, Tensor]:
    """Of a module, by name.

    Raises:
        ConfigError: for a pattern that chooses none.
    """
    named = dict(module.named_parameters())
    globs = [patterns] if isinstance(patterns, str) else patterns
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in named):
            raise ConfigError(f"The pattern {glob!r} in `train` chooses no weights; see `afterfit plan` for the names.")
    return {name: value for name, value in named.items() if any(fnmatchcase(name, glob) for glob in globs)}


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict()
    return {name: value for name, value in module.named_buffers() if name in saved}


def targets_of(batch: Batch) -> Tensor:
    """What is to be predicted.

    Raises:
        DataError: if the data have none.
    """
    if batch.targets is None:
        raise DataError("The training data have no targets; name their `label` or `target` column.")
    return batch.targets


@contextmanager
def _train_mode(module: nn.Module) -> Iterator[None]:
    """Dropout on, batch statistics used; afterwards every part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
