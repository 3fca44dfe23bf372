"""A Gaussian over network outputs, its covariance held as roots: what every posterior predicts.

Shapes: B examples, C outputs, K columns of the root, S draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.errors import ConfigError, NumericalError
from afterfit.posterior.links import Link, Meaning, Observed, observe, probabilities
from afterfit.precision import CORE, one_thread
from afterfit.seeds import Seed, normals


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Outputs of B examples, each N(mean, root root^T + dense), joint through the columns of their roots.

    Raises:
        ConfigError: if the shapes do not fit each other.
    """

    mean: Tensor
    """(B, C); its dtype and device are those of every result."""

    low_rank_root: Tensor
    """(B, C, K); column k is how the outputs answer to the k-th independent standard normal. K may be 0."""

    dense: Tensor | None = None
    """(B, C, C), positive semi-definite: what the root misses, independent from example to example."""

    likelihood: Meaning = "categorical"
    """What the outputs are: logits of one class among C, C separate logits, or numbers."""

    indexes: Tensor | None = None
    """(B,) positions in the data set; they name the noise of the dense part, needed for draws with one."""

    def __post_init__(self):
        batch, outputs = self.mean.shape
        if self.low_rank_root.shape[:2] != (batch, outputs):
            raise ConfigError(
                f"The root has shape {tuple(self.low_rank_root.shape)}; the mean asks for ({batch}, {outputs}, K)."
            )
        if self.dense is not None and self.dense.shape != (batch, outputs, outputs):
            raise ConfigError(
                f"The dense part has shape {tuple(self.dense.shape)}; the mean asks for "
                f"({batch}, {outputs}, {outputs})."
            )
        if self.indexes is not None and self.indexes.shape != (batch,):
            raise ConfigError(f"{len(self.indexes)} indexes were given for {batch} examples; give one for each.")

    @property
    def covariance(self) -> Tensor:
        """(B, C, C), each example's own. Cost: B C^2 K multiplications."""
        low_rank = self.low_rank_root @ self.low_rank_root.mT
        return low_rank if self.dense is None else low_rank + self.dense

    @property
    def variance(self) -> Tensor:
        """(B, C), the covariance's diagonal without the covariance. Cost: B C K multiplications."""
        low_rank = self.low_rank_root.square().sum(dim=-1)
        if self.dense is None:
            return low_rank
        return low_rank + self.dense.diagonal(dim1=-2, dim2=-1).clamp_min(0)

    @property
    def centred_variance(self) -> Tensor:
        """(B, C), variances of the outputs less their own average, which is all that a softmax sees."""
        low_rank = (self.low_rank_root - self.low_rank_root.mean(dim=1, keepdim=True)).square().sum(dim=-1)
        if self.dense is None:
            return low_rank
        centred = self.dense - self.dense.mean(dim=1, keepdim=True)
        centred = centred - centred.mean(dim=2, keepdim=True)
        return low_rank + centred.diagonal(dim1=-2, dim2=-1).clamp_min(0)

    def examples(self, chosen: slice) -> "Gaussian":
        """The same for a run of the examples; nothing is copied."""
        return Gaussian(
            self.mean[chosen],
            self.low_rank_root[chosen],
            None if self.dense is None else self.dense[chosen],
            self.likelihood,
            None if self.indexes is None else self.indexes[chosen],
        )

    def draw(self, seed: Seed, num: int) -> Tensor:
        """Draws of the outputs, (num, B, C).

        One draw is one draw of the function: all examples share its K normals, also across batches drawn with
        the same seed and `num`. The dense part's noise is each example's own, named by its index.

        Raises:
            ConfigError: if there is a dense part and no indexes.
            NumericalError: if the dense part is not finite.

        Cost: num B C K multiplications, exact, no factorisation; with a dense part one C x C eigenproblem an
        example.
        """
        return self.sampler(seed, num)(0, num)

    def sampler(self, seed: Seed, num: int) -> Callable[[int, int], Tensor]:
        """Draws start to stop - 1 out of the `num` that `draw` gives, as a function of (start, stop).

        Noise and roots are made once; each call then holds only its own draws.
        """
        rank = self.low_rank_root.shape[-1]
        shared_SK = normals(seed.child("low_rank"), num, rank, dtype=CORE).to(self.mean)
        own_BSC = self._dense_draws(seed, num)

        def draws(start: int, stop: int) -> Tensor:
            moved_BSC = shared_SK[start:stop] @ self.low_rank_root.mT
            if own_BSC is not None:
                moved_BSC = moved_BSC + own_BSC[:, start:stop]
            return self.mean + moved_BSC.movedim(1, 0)

        return draws

    def _dense_draws(self, seed: Seed, num: int) -> Tensor | None:
        if self.dense is None:
            return None
        if self.indexes is None:
            raise ConfigError("Draws with a dense part need the examples' positions; give `indexes`.")
        root_BCC = psd_root(self.dense)
        outputs = self.mean.shape[1]
        place = seed.child("dense")
        own_BSC = torch.stack(
            [normals(place.child(index), num, outputs, dtype=CORE) for index in self.indexes.tolist()]
        )
        return (own_BSC.to(root_BCC.device) @ root_BCC.mT).to(self.mean)

    def probabilities(self, link: Link = "probit", *, num_draws: int = 512, seed: Seed = Seed(0)) -> Tensor:  # noqa: B008
        """Probabilities (B, C), the uncertainty of the outputs averaged out; see `links.probabilities`."""
        return probabilities(self, link, num_draws=num_draws, seed=seed)

    def observe(self, noise_variance: Tensor | float) -> Observed:
        """Moments of a regression target; see `links.observe`."""
        return observe(self, noise_variance)


def psd_root(matrices: Tensor) -> Tensor:
    """Roots X with X X^T the nearest positive semi-definite matrices to `matrices` (n, C, C), in float64.

    Differences of large matrices, such as a prior complement at training inputs, have eigenvalues below zero
    by rounding; these are set to zero and no jitter is added to the others.

    Raises:
        NumericalError: if a matrix is not finite.

    Cost: one eigenproblem a matrix.
    """
    if not bool(torch.isfinite(matrices).all()):
        raise NumericalError("An output covariance is not finite; raise the prior precision or use float64.")
    wide = matrices.to(CORE)
    with one_thread():
        values, vectors = torch.linalg.eigh((wide + wide.mT) / 2)
    return vectors * values.clamp_min(0).sqrt()[:, None, :]
