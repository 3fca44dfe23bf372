"""How the gradient of the loss answers to displacements of the weights, summed over the data.

Four kinds, for displacements D (P, k) of the trained weights theta, g the gradient of the negative log density:
`ggn` J^T Lambda J D; `linearised` J^T [l'(f + J D) - l'(f)], of the network linearised at theta; `hessian` H D; `exact`
g(theta + D) - g(theta). The first and the third are linear in D; the others need gradients only. Taking g(theta) away
makes theta a minimum whether or not training ended there.

Shapes: B examples, C outputs, P weights by tiles, k columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterfit.algebra import Batch
from afterfit.arithmetic import Arithmetic
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE
from afterfit.rows import row_backend
from afterfit.rows.protocol import Cotangents, RowBackend, unit_cotangents
from afterfit.training.point_estimate import targets_of

AT_ONCE = 256
"""Columns whose outputs are held together."""
Tiles = Mapping[str, Tensor]
Kind = Literal["ggn", "linearised", "hessian", "exact"]


class Response(Protocol):
    """Of one kind, on a worker's network."""

    @property
    def kind(self) -> Kind:
        """Which of the four."""
        ...

    @property
    def network(self) -> Network:
        """That is differentiated."""
        ...

    def add(self, batch: Batch, start: Tiles | None, move: Tiles, into: Tiles) -> None:
        """Add to tiles (P_tile, k) what the step from one displacement (None: none) changes a micro-batch's part by."""
        ...

    def moved(self, batch: Batch, columns: Tiles) -> Tensor:
        """What the displacements change the outputs by, (B, C, k) in float64."""
        ...

    def add_rows(
        self, batch: Batch, into: Tiles, weights_BSk: Tensor | None = None, cotangents: Cotangents = unit_cotangents
    ) -> Tensor:
        """Outputs (B, C); adds R^T W to the tiles for W (B, S, k), or R^T, each (P_tile, B S), for rows R of J."""
        ...

    def times(self, batch: Batch, columns: Tiles) -> Tensor:
        """J V, (B, C, k) in float64."""
        ...

    def gram(self, batch: Batch) -> Tensor:
        """J_b J_b^T of each example, (B, C, C) in float64."""
        ...


def response_on(bench: Workbench, likelihood: Likelihood, kind: Kind) -> Response:
    """Those of the true network run in float64, since they are differences of gradients."""
    if kind in ("ggn", "linearised"):
        backend = row_backend(bench.network, bench.memory_gb, bench.arithmetic)
        return OutputResponse(bench.network, likelihood, kind, backend)
    network = in_core(bench.network)
    arithmetic = Arithmetic(compiled=bench.arithmetic.compiled)  # autocast is of float32
    backend = row_backend(network, bench.memory_gb, arithmetic)
    return WeightResponse(network, likelihood, kind, backend)


def in_core(network: Network) -> Network:
    """The network in float64."""
    if network.dtype == CORE:
        return network
    chosen = [block.name for block in network.layout.blocks]
    module = deepcopy(network.module).to(CORE)
    return Network(module, chosen, output=network.output, tile_weights=network.layout.tile_weights)


@dataclass(frozen=True)
class _WithRows:
    network: Network
    likelihood: Likelihood
    kind: Kind
    backend: RowBackend

    def add_rows(
        self, batch: Batch, into: Tiles, weights_BSk: Tensor | None = None, cotangents: Cotangents = unit_cotangents
    ) -> Tensor:
        """See `Response`."""
        rows = self.backend.rows(batch, cotangents)
        if weights_BSk is None:
            weights_BSk = torch.eye(len(batch) * rows.num_cotangents, dtype=CORE).unflatten(0, (len(batch), -1))
        rows.transpose_times(weights_BSk.to(rows.outputs_BC.device), into)
        return rows.outputs_BC

    def times(self, batch: Batch, columns: Tiles) -> Tensor:
        """See `Response`."""
        return self.backend.rows(batch, unit_cotangents).times(columns)

    def gram(self, batch: Batch) -> Tensor:
        """See `Response`."""
        return self.backend.rows(batch, unit_cotangents).gram()


@dataclass(frozen=True)
class OutputResponse(_WithRows):
    """`ggn` and `linearised`: through J alone. Cost: C rows an example, 4 B C P k, or 6 B C P k."""

    def add(self, batch: Batch, start: Tiles | None, move: Tiles, into: Tiles) -> None:
        """See `Response`. The difference is made of outputs, in float64, before anything is summed in less."""
        rows = self.backend.rows(batch, unit_cotangents)
        moved_BCk = rows.times(move)
        outputs_BC = rows.outputs_BC.to(CORE)
        if self.kind == "ggn":
            answer_BCk = self.likelihood.hessian(outputs_BC) @ moved_BCk
        else:
            start_BCk = torch.zeros_like(moved_BCk) if start is None else rows.times(start)
            answer_BCk = self._change(outputs_BC, start_BCk, moved_BCk, targets_of(batch).to(outputs_BC.device))
        rows.transpose_times(answer_BCk, into)

    def _change(self, outputs_BC: Tensor, start_BCk: Tensor, moved_BCk: Tensor, targets: Tensor) -> Tensor:
        parts = []
        for from_BCk, by_BCk in zip(start_BCk.split(AT_ONCE, 2), moved_BCk.split(AT_ONCE, 2), strict=True):
            before_BCk = outputs_BC[..., None] + from_BCk
            before, after = (self._gradients(there, targets) for there in (before_BCk, before_BCk + by_BCk))
            parts.append(before - after)
        return torch.cat(parts, dim=2)

    def _gradients(self, there_BCk: Tensor, targets: Tensor) -> Tensor:
        """Of the log density, columns as further examples."""
        num_examples, _, num_columns = there_BCk.shape
        targets = targets.repeat(num_columns, *[1] * (targets.dim() - 1))
        found = self.likelihood.gradient(there_BCk.movedim(2, 0).flatten(0, 1), targets)
        return found.unflatten(0, (num_columns, num_examples)).movedim(0, 2)

    def moved(self, batch: Batch, columns: Tiles) -> Tensor:
        """See `Response`."""
        return self.times(batch, columns)


@dataclass(frozen=True)
class WeightResponse(_WithRows):
    """`hessian` and `exact`: through the network itself, a column at a time. Cost: 2 k passes of training."""

    def add(self, batch: Batch, start: Tiles | None, move: Tiles, into: Tiles) -> None:
        """See `Response`."""
        answers = self._products(batch, move) if self.kind == "hessian" else self._changes(batch, start, move)
        for number, answer in enumerate(answers):
            for tile in self.network.layout:
                into[tile.name][:, number] += self.network.layout.cut(answer, tile).to(into[tile.name])

    def _products(self, batch: Batch, move: Tiles) -> Iterator[dict[str, Tensor]]:
        weights = {name: weight.detach().requires_grad_() for name, weight in self.network.weights.items()}
        gradient = self._gradient(batch, weights, create_graph=True)
        for direction in _blocks(self.network, move):
            product = sum((gradient[name] * direction[name]).sum() for name in gradient)
            assert isinstance(product, Tensor)
            yield _derivatives(product, weights, retain_graph=True)

    def _changes(self, batch: Batch, start: Tiles | None, move: Tiles) -> Iterator[dict[str, Tensor]]:
        at = self.network.weights
        trained = self._gradient(batch, at) if start is None else {}
        for here, there in zip(_blocks(self.network, start or move), _blocks(self.network, move), strict=True):
            weights = at if start is None else {name: weight + here[name] for name, weight in at.items()}
            before = trained if start is None else self._gradient(batch, weights)
            after = self._gradient(batch, {name: weight + there[name] for name, weight in weights.items()})
            yield {name: after[name] - before[name] for name in after}

    def _gradient(self, batch: Batch, weights: Tiles, *, create_graph: bool = False) -> dict[str, Tensor]:
        """Of the negative log density, by blocks. Fused attention has no second derivative, so it is made plain."""
        if not create_graph:
            weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with sdpa_kernel(SDPBackend.MATH):
            outputs_BC = self.network(batch.inputs, weights)
            loss = -self.likelihood.log_density(outputs_BC, targets_of(batch).to(outputs_BC.device)).sum()
            return _derivatives(loss, weights, create_graph=create_graph)

    def moved(self, batch: Batch, columns: Tiles) -> Tensor:
        """See `Response`; of `hessian` linear in the displacements."""
        if self.kind == "hessian":
            return self.times(batch, columns)
        with torch.no_grad():
            before_BC = self.network(batch.inputs)
            after = [
                self.network(
                    batch.inputs, {name: weight + moved[name] for name, weight in self.network.weights.items()}
                )
                for moved in _blocks(self.network, columns)
            ]
        return torch.stack([after_BC - before_BC for after_BC in after], dim=2)


def _derivatives(
    value: Tensor, weights: Tiles, *, retain_graph: bool | None = None, create_graph: bool = False
) -> dict[str, Tensor]:
    """By blocks; zeros for those that have no part in it."""
    leaves = list(weights.values())
    found = torch.autograd.grad(value, leaves, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(weight) if part is None else part
        for (name, weight), part in zip(weights.items(), found, strict=True)
    }


def _blocks(network: Network, columns: Tiles) -> Iterator[dict[str, Tensor]]:
    """One column after another, as block-shaped tensors."""
    for number in range(next(iter(columns.values())).shape[1]):
        flat = {name: tile_Pk[:, number].clone() for name, tile_Pk in columns.items()}
        yield {name: value.to(network.weights[name]) for name, value in network.layout.assemble(flat).items()}
