"""What the outputs mean: log densities of the targets, their curvature in the outputs, and cotangents.

One convention: densities are in nats, and curvature is of the *negative* log density, so sums over the data
need no signs. Shapes: B examples, C outputs, S cotangents of one example. Outputs in 16 bits are widened to
float32 first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from afterfit.errors import ConfigError, DataError, NumericalError
from afterfit.network.softmax import labels_at, one_hot_minus, wide_log_softmax
from afterfit.network.tokens import TokenCategorical
from afterfit.precision import state_dtype
from afterfit.seeds import Seed, normals


class Likelihood(Protocol):
    """A density of one example's target given its outputs.

    Laws, for outputs_BC and any targets:
        gradient is the derivative of log_density in the outputs, hessian minus the second one
        root(o).mT @ root(o) == hessian(o)
        sample_cotangents(o, ...).mT @ sample_cotangents(o, ...) has the expectation hessian(o)
    """

    name: ClassVar[str]

    def num_cotangents(self, num_outputs: int) -> int:
        """S: how many cotangents make an exact root."""
        ...

    def log_density(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Log density of each target, (B,), in nats."""
        ...

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Derivative of the log density in the outputs, (B, C)."""
        ...

    def hessian(self, outputs_BC: Tensor) -> Tensor:
        """Curvature of the negative log density in the outputs, whatever the targets, (B, C, C)."""
        ...

    def root(self, outputs_BC: Tensor) -> Tensor:
        """Exact root of the curvature, (B, S, C): its rows are the cotangents."""
        ...

    def sample_cotangents(self, outputs_BC: Tensor, seed: Seed, indexes_B: Tensor, num: int) -> Tensor:
        """Gradients at targets drawn from the density itself, over sqrt(num), (B, num, C).

        Args:
            outputs_BC: the network's outputs.
            seed: the place of this pass in the tree of randomness.
            indexes_B: positions in the data set; they name the noise, so micro-batching does not change it.
            num: cotangents of each example.
        """
        ...

    def check(self, targets: Tensor, num_outputs: int) -> None:
        """Refuse targets that the density is not defined for.

        Raises:
            DataError: for a wrong type or width, a label out of range, a number that is not finite.
        """
        ...


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of C classes; outputs are logits, targets (B,) integers."""

    name: ClassVar[str] = "categorical"

    def num_cotangents(self, num_outputs: int) -> int:
        """C - 1: the logits' common shift has no curvature."""
        return num_outputs - 1

    def log_density(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Log probability of each label, (B,)."""
        return wide_log_softmax(outputs_BC).gather(1, targets.long()[:, None])[:, 0]

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """One at the label minus the probabilities, (B, C)."""
        return one_hot_minus(wide_log_softmax(outputs_BC).exp(), targets.long()[:, None])[:, 0]

    def hessian(self, outputs_BC: Tensor) -> Tensor:
        """diag(p) - p p^T, (B, C, C); the diagonal as a sum, since 1 - p cancels where p is near 1."""
        p_BC = wide_log_softmax(outputs_BC).exp()
        minus_BCC = -p_BC[:, :, None] * p_BC[:, None, :]
        torch.diagonal(minus_BCC, dim1=1, dim2=2).zero_()
        return minus_BCC - torch.diag_embed(minus_BCC.sum(dim=2))

    def root(self, outputs_BC: Tensor) -> Tensor:
        """Columns of (diag(r) - p r^T) H, (B, C - 1, C), with r = sqrt(p) and a Householder reflection H.

        H maps r, the null direction, to the axis k of the most likely class; that column vanishes and is
        dropped. The column of class j is then r_j (e_j - q / (1 + r_k) - r_k e_k), q being p without its
        entry k: no differences of nearly equal numbers, hence right to rounding at saturated p too. O(B C^2).
        """
        log_p_BC = wide_log_softmax(outputs_BC)
        r_BC = (log_p_BC / 2).exp()
        top_B1 = log_p_BC.argmax(dim=1, keepdim=True)
        r_top_B1 = r_BC.gather(1, top_B1)
        order_S = torch.arange(log_p_BC.shape[1] - 1, device=log_p_BC.device)
        others_BS = order_S + (order_S >= top_B1).long()
        row_BC = (-log_p_BC.exp() / (1 + r_top_B1)).scatter(1, top_B1, -r_top_B1)
        root_BSC = row_BC[:, None].repeat(1, len(order_S), 1)
        ones_BS1 = root_BSC.new_ones(()).expand(*others_BS.shape, 1)
        root_BSC.scatter_add_(2, others_BS[..., None], ones_BS1)
        return root_BSC.mul_(r_BC.gather(1, others_BS)[..., None])

    def sample_cotangents(self, outputs_BC: Tensor, seed: Seed, indexes_B: Tensor, num: int) -> Tensor:
        """Gradients at labels drawn by inversion from the softmax, over sqrt(num), (B, num, C)."""
        p_BC = wide_log_softmax(outputs_BC).exp()
        drawn_BS = labels_at(p_BC, _uniforms(seed, indexes_B, num).to(p_BC.device))
        return one_hot_minus(p_BC, drawn_BS) / math.sqrt(num)

    def check(self, targets: Tensor, num_outputs: int) -> None:
        """Labels must be integers (B,) from 0 to C - 1.

        Raises:
            DataError: if they are not.
        """
        if targets.dim() != 1:
            raise DataError(f"Labels have shape {tuple(targets.shape)}; give one class number per example.")
        if targets.is_floating_point() or targets.is_complex():
            raise DataError(
                f"Labels are {_dtype_name(targets)}; class numbers are integers. For numbers to predict set "
                "`likelihood: gaussian`."
            )
        if num_outputs < 2:
            raise DataError(
                f"The network has {num_outputs} output; classes need at least 2. For one logit set "
                "`likelihood: bernoulli`."
            )
        wrong = (targets < 0) | (targets >= num_outputs)
        if bool(wrong.any()):
            first = _first(wrong)
            raise DataError(
                f"Example {first} has label {int(targets[first])}, but the network's {num_outputs} outputs "
                f"stand for classes 0 to {num_outputs - 1}; renumber the labels or widen the network."
            )


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """C independent yes-or-no answers; outputs are logits, targets 0 or 1, (B, C), or (B,) where C is 1."""

    name: ClassVar[str] = "bernoulli"

    def num_cotangents(self, num_outputs: int) -> int:
        """C."""
        return num_outputs

    def log_density(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Log probability of each example's answers, (B,)."""
        wide_BC = _widen(outputs_BC)
        return logsigmoid(torch.where(_like(targets, wide_BC) > 0.5, wide_BC, -wide_BC)).sum(dim=1)

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Target minus probability, (B, C)."""
        wide_BC = _widen(outputs_BC)
        return _answer_minus(wide_BC, _like(targets, wide_BC) > 0.5)

    def hessian(self, outputs_BC: Tensor) -> Tensor:
        """diag(p (1 - p)), (B, C, C)."""
        wide_BC = _widen(outputs_BC)
        return torch.diag_embed(wide_BC.sigmoid() * (-wide_BC).sigmoid())

    def root(self, outputs_BC: Tensor) -> Tensor:
        """diag(sqrt(p (1 - p))), (B, C, C)."""
        wide_BC = _widen(outputs_BC)
        return torch.diag_embed(((logsigmoid(wide_BC) + logsigmoid(-wide_BC)) / 2).exp())

    def sample_cotangents(self, outputs_BC: Tensor, seed: Seed, indexes_B: Tensor, num: int) -> Tensor:
        """Gradients at answers drawn from the sigmoids, over sqrt(num), (B, num, C)."""
        wide_B1C = _widen(outputs_BC)[:, None]
        level_BSC = _uniforms(seed, indexes_B, num, outputs_BC.shape[1]).to(wide_B1C.device)
        return _answer_minus(wide_B1C, level_BSC < wide_B1C.double().sigmoid()) / math.sqrt(num)

    def check(self, targets: Tensor, num_outputs: int) -> None:
        """Answers must be 0 or 1, one for each output.

        Raises:
            DataError: if they are not.
        """
        _check_width(targets, num_outputs)
        wrong = (targets != 0) & (targets != 1)
        if bool(wrong.any()):
            first = _first(wrong)
            value = targets[first][wrong[first]].flatten()[0].item()
            raise DataError(f"Example {first} has target {value:g}; a Bernoulli target is 0 or 1.")


@dataclass(frozen=True, slots=True)
class Gaussian:
    """C numbers with noise of one variance; outputs are means, targets (B, C), or (B,) where C is 1."""

    noise_variance: float | None = None  # in squared units of the targets; None until `fit_noise` gives it

    name: ClassVar[str] = "gaussian"

    def __post_init__(self):
        if self.noise_variance is not None and not 0 < self.noise_variance < math.inf:
            raise ConfigError(f"The noise variance is {self.noise_variance}; it must be a positive number.")

    @property
    def variance(self) -> float:
        """The noise variance, known by now.

        Raises:
            ConfigError: if it is still to be fitted.
        """
        if self.noise_variance is None:
            raise ConfigError("The noise variance is not known; give `noise_variance` or call `fit_noise`.")
        return self.noise_variance

    def num_cotangents(self, num_outputs: int) -> int:
        """C."""
        return num_outputs

    def log_density(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Log density of each example's numbers, (B,)."""
        wide_BC = _widen(outputs_BC)
        squares_B = (_like(targets, wide_BC) - wide_BC).square().sum(dim=1)
        return -(squares_B / self.variance + wide_BC.shape[1] * math.log(2 * math.pi * self.variance)) / 2

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Residual over the noise variance, (B, C)."""
        wide_BC = _widen(outputs_BC)
        return (_like(targets, wide_BC) - wide_BC) / self.variance

    def hessian(self, outputs_BC: Tensor) -> Tensor:
        """I over the noise variance, (B, C, C)."""
        return torch.diag_embed(torch.full_like(_widen(outputs_BC), 1 / self.variance))

    def root(self, outputs_BC: Tensor) -> Tensor:
        """I over the noise's standard deviation, (B, C, C)."""
        return torch.diag_embed(torch.full_like(_widen(outputs_BC), 1 / math.sqrt(self.variance)))

    def sample_cotangents(self, outputs_BC: Tensor, seed: Seed, indexes_B: Tensor, num: int) -> Tensor:
        """Standard normals over the noise's standard deviation and over sqrt(num), (B, num, C)."""
        wide_BC = _widen(outputs_BC)
        places = [seed.child(int(index)) for index in indexes_B.tolist()]
        noise = [normals(place, num, wide_BC.shape[1], dtype=wide_BC.dtype) for place in places]
        return torch.stack(noise).to(wide_BC.device) / math.sqrt(self.variance * num)

    def fit_noise(self, outputs_NC: Tensor, targets: Tensor) -> "Gaussian":
        """The same likelihood with the maximum-likelihood noise variance: the mean squared residual.

        Raises:
            NumericalError: if every residual is zero, or one is not finite.
        """
        wide_NC = _widen(outputs_NC)
        variance = (_like(targets, wide_NC).double() - wide_NC.double()).square().mean().item()
        if not 0 < variance < math.inf:
            raise NumericalError(
                f"The mean squared residual is {variance}, which is no noise variance; give `noise_variance`."
            )
        return replace(self, noise_variance=variance)

    def check(self, targets: Tensor, num_outputs: int) -> None:
        """Targets must be finite numbers, one for each output.

        Raises:
            DataError: if they are not.
        """
        _check_width(targets, num_outputs)
        wrong = ~torch.isfinite(targets)
        if bool(wrong.any()):
            raise DataError(f"Example {_first(wrong)} has a target that is not finite; drop the example.")


LIKELIHOODS: Mapping[str, type[Categorical] | type[Bernoulli] | type[Gaussian] | type[TokenCategorical]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "tokens": TokenCategorical,
}


def likelihood_named(name: str, noise_variance: float | None = None) -> Likelihood:
    """The likelihood that a configuration names.

    Args:
        name: a key of `LIKELIHOODS`.
        noise_variance: of the Gaussian; None leaves it to be fitted.

    Raises:
        ConfigError: for an unknown name, or a noise variance that the likelihood has no use for.
    """
    if name not in LIKELIHOODS:
        raise ConfigError(f"There is no likelihood {name!r}; choose from {', '.join(LIKELIHOODS)}.")
    if name == Gaussian.name:
        return Gaussian(noise_variance)
    if noise_variance is not None:
        raise ConfigError(f"The {name} likelihood has no noise variance; remove it, or choose gaussian.")
    return LIKELIHOODS[name]()


def _widen(outputs: Tensor) -> Tensor:
    return outputs.to(state_dtype(outputs.dtype))


def _answer_minus(logits: Tensor, is_yes: Tensor) -> Tensor:
    """1 - p where the answer is yes, -p where it is no, without cancellation."""
    return torch.where(is_yes, (-logits).sigmoid(), -logits.sigmoid())


def _like(targets: Tensor, outputs_BC: Tensor) -> Tensor:
    """Targets (B,) or (B, C) shaped and typed as the outputs."""
    return targets.reshape(outputs_BC.shape).to(outputs_BC)


def _uniforms(seed: Seed, indexes_B: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), (B, *shape), float64, each example's named by its index."""
    places = [seed.child("uniforms", index, *shape) for index in indexes_B.tolist()]
    return torch.stack([torch.rand(shape, generator=place.generator(), dtype=torch.float64) for place in places])


def _check_width(targets: Tensor, num_outputs: int) -> None:
    width = 1 if targets.dim() == 1 else targets.shape[-1]
    if targets.dim() not in (1, 2) or width != num_outputs:
        raise DataError(
            f"Targets have shape {tuple(targets.shape)}, but the network has {num_outputs} outputs; "
            "each example needs one target number for each output."
        )
    if targets.is_complex():
        raise DataError(f"Targets are {_dtype_name(targets)}; real numbers are needed.")


def _first(wrong: Tensor) -> int:
    """Position of the first example that has a fault."""
    return int(wrong.reshape(len(wrong), -1).any(dim=1).nonzero()[0, 0])


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
