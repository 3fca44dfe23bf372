"""A Gaussian over weights with curvature in a subspace, and the prior, or nothing, outside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from afterfit.errors import NumericalError
from afterfit.linalg.eigen import eigenpairs
from afterfit.posterior.gaussian import Gaussian
from afterfit.posterior.links import Meaning
from afterfit.precision import CORE
from afterfit.seeds import Seed, normals

Complement = Literal["none", "prior"]


@dataclass(frozen=True)
class SubspacePosterior:
    """Weights ~ N(MAP, V (G / T + lambda I)^-1 V^T [+ (I - V V^T) / lambda]), V (P, K) with orthonormal columns.

    G / T is held by its eigenpairs, so another prior precision or temperature costs nothing.
    """

    curvature_K: Tensor  # eigenvalues of G / T, falling, float64, nats per unit weight squared
    rotation_KK: Tensor  # their eigenvectors, in V's coordinates
    prior_precision: float  # lambda
    complement: Complement

    def __post_init__(self):
        if not self.prior_precision > 0:
            raise NumericalError(f"The prior precision is {self.prior_precision}; it must be positive.")

    @classmethod
    def of(
        cls, curvature_KK: Tensor, prior_precision: float, temperature: float = 1.0, complement: Complement = "none"
    ) -> "SubspacePosterior":
        """From the data's curvature G in the basis.

        Raises:
            NumericalError: if the curvature is not finite, or the prior precision not positive.
        """
        values, vectors = eigenpairs(curvature_KK / temperature)
        return cls(values.clamp(min=0), vectors, prior_precision, complement)

    @property
    def root_KK(self) -> Tensor:
        """A root of (G / T + lambda I)^-1 in V's coordinates: root root^T is the covariance."""
        return self.rotation_KK / (self.curvature_K + self.prior_precision).sqrt()

    def outputs(
        self,
        mean_BC: Tensor,
        features_BCK: Tensor,
        kernel_BCC: Tensor | None = None,
        *,
        likelihood: Meaning = "categorical",
        indexes: Tensor | None = None,
    ) -> Gaussian:
        """The Gaussian over outputs of the linearised network.

        Args:
            mean_BC: outputs of the trained network.
            features_BCK: J V.
            kernel_BCC: J J^T; needed where the complement is the prior.
            likelihood: what the outputs are.
            indexes: positions of the examples, (B,); they name the noise of the complement's draws.

        Cost: B C K^2, and B C^2 K with the complement.
        """
        root_BCK = features_BCK.to(CORE) @ self.root_KK.to(features_BCK.device)
        dense_BCC = None
        if self.complement == "prior":
            if kernel_BCC is None:
                raise NumericalError("The complement needs the kernel J J^T of each example.")
            wide_BCK = features_BCK.to(CORE)
            dense_BCC = ((kernel_BCC.to(CORE) - wide_BCK @ wide_BCK.mT) / self.prior_precision).to(mean_BC)
        return Gaussian(mean_BC, root_BCK.to(mean_BC), dense_BCC, likelihood, indexes)

    def draw(self, basis: Mapping[str, Tensor], seed: Seed, number: int) -> Iterator[tuple[str, Tensor]]:
        """One displacement from the trained weights, by tiles (P_tile,), never all at once.

        With the complement, two passes over V: one for V^T xi, one for the displacement.
        """
        place = seed.child("draw", number)
        num_features = len(self.curvature_K)
        inside_K = self.root_KK @ normals(place.child("inside"), num_features, dtype=CORE)
        if self.complement == "prior":
            outside_K = torch.zeros(num_features, dtype=CORE)
            for tile, columns_PK in basis.items():
                outside_K += columns_PK.to(CORE).mT @ normals(place.child(tile), len(columns_PK), dtype=CORE)
            inside_K = inside_K - outside_K / self.prior_precision**0.5
        for tile, columns_PK in basis.items():
            displacement_P = columns_PK.to(CORE) @ inside_K
            if self.complement == "prior":
                noise_P = normals(place.child(tile), len(columns_PK), dtype=CORE)
                displacement_P += noise_P / self.prior_precision**0.5
            yield tile, displacement_P.to(columns_PK.dtype)

    def log_evidence(self, log_density: float, squared_norm: float) -> float:
        """Laplace's approximation of the log marginal likelihood, in nats.

        Args:
            log_density: of the data at the trained weights, summed, over the temperature.
            squared_norm: |theta|^2 of the chosen weights.

        The prior's P log lambda / 2 cancels against the directions that the data leave alone.
        """
        log_ratio = torch.log1p(self.curvature_K / self.prior_precision).sum().item()
        return log_density - self.prior_precision * squared_norm / 2 - log_ratio / 2
