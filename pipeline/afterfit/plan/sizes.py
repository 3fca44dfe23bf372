"""The sizes of a plan: what its costs are counted from, and what recipes plan their units from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import cast

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.layout import Layout
from afterfit.methods.projection.protected import Protected
from afterfit.plan.draws_tail import CHUNK, chunks_of
from afterfit.plan.request import DrawsMethod, FitRequest
from afterfit.plan.stage import Stage
from afterfit.resources import GB
from afterfit.rows.columns import COLUMNS_SHARE
from afterfit.rows.counts import both_ways, by_rows, pushed
from afterfit.rows.planning import KEPT_SHARE, cotangents_at_once, slice_bytes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What costs are counted from. It is also the outline that recipes plan their units from.

    M, K and S are those that the recipes ask for; a basis may get fewer columns.
    """

    request: FitRequest
    num_landmarks: int  # M
    num_features: int  # K
    num_probes: int  # S
    num_samples: int | None = None  # of cotangents, where a recipe draws them
    roles: Mapping[str, str] = field(default_factory=dict)  # of a stage that lets other data play a role
    chunks: Mapping[str, int] = field(default_factory=dict)  # stage of stored draws -> how many it holds
    num_chunk_draws: int = 0  # of the chunk that a stage reads
    protected: Protected | None = None  # rows that draws are projected off

    @classmethod
    def of(cls, plan: Sequence[Stage], request: FitRequest) -> "Sizes":
        """Of a plan."""

        def asked(name: str) -> int:
            values = (getattr(stage.recipe, name, None) for stage in plan)
            return next((value for value in values if value is not None), 0)

        landmarks = min(asked("num_landmarks"), request.data["train"].num_examples * request.num_outputs)
        probes = min(asked("num_probes"), request.layout.num_weights)
        features = min(asked("num_features"), landmarks) or asked("rank") or probes
        return cls(
            request=request,
            num_landmarks=landmarks,
            num_features=features,
            num_probes=probes,
            chunks=_chunk_draws(plan, request),
            protected=next((each for each in map(_protected, plan) if each is not None), None),
        )

    def on(self, stage: Stage) -> "Sizes":
        """For one stage: the data that play its roles, the chunk of draws that it reads."""
        chunk = stage.inputs["draws"].name if "draws" in stage.inputs else ""
        return replace(self, roles=stage.roles, num_chunk_draws=self.chunks.get(chunk, 0))

    @property
    def num_draws(self) -> int:
        """Stored draws of all chunks."""
        return sum(self.chunks.values())

    @property
    def layout(self) -> Layout:
        """Of the chosen weights."""
        return self.request.layout

    @property
    def num_weights(self) -> int:
        """P."""
        return self.layout.num_weights

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.request.num_outputs

    @property
    def num_cotangents(self) -> int:
        """Of an example."""
        return self.num_samples or self.num_outputs

    @property
    def memory_gb(self) -> float:
        """Budget."""
        return self.request.memory_gb

    @property
    def micro_batch(self) -> int:
        """B."""
        return self.request.micro_batch

    @property
    def forward_flops(self) -> float:
        """Of one example."""
        return self.request.forward_flops

    @property
    def state_bytes(self) -> int:
        """Of one number of a sum."""
        return self.request.state_bytes

    def num_examples(self, role: str) -> int:
        """N."""
        return self.request.data[self.roles.get(role, role)].num_examples

    def shards(self, role: str) -> Sequence[range]:
        """The shard table."""
        return self.request.data[self.roles.get(role, role)].shards

    def input(self, role: str) -> "Expected":
        """An artifact that is not there yet, as far as its sizes are known."""
        num_grams = self.protected.num_layers(self) if self.protected else 0  # type: ignore[arg-type]
        return Expected(self.num_landmarks, self.num_probes, self.num_features, num_grams)

    @property
    def keeps_rows(self) -> bool:
        """Whether the explicit rows of a part stay for a second verb."""
        return self._cotangents_at_once * self._row_bytes <= KEPT_SHARE * self.memory_gb * GB

    @property
    def _row_bytes(self) -> int:
        """Explicit rows of one cotangent of a micro-batch."""
        return self.micro_batch * self.num_weights * self.state_bytes

    @property
    def _gradient_bytes(self) -> int:
        """What they are made of."""
        coverage = self.request.coverage
        return self.micro_batch * (coverage.gradient_numbers if coverage else 0) * self.state_bytes

    @property
    def _cotangents_at_once(self) -> int:
        given = {"row_bytes": self._row_bytes, "gradient_bytes": self._gradient_bytes}
        return cotangents_at_once(self.micro_batch, self.num_cotangents, self.memory_gb, **given)

    @property
    def row_bytes(self) -> float:
        """Explicit rows of a part, and the gradients that they are made of."""
        explicit = self._cotangents_at_once * self._row_bytes if self.keeps_rows else slice_bytes(self.memory_gb)
        return float(explicit + self._cotangents_at_once * self._gradient_bytes)

    def columns_bytes(self, num_columns: int) -> float:
        """Columns (P, k) as they are held: all of them, or a tile at a time."""
        whole = self.num_weights * num_columns * self.state_bytes
        widest = max(tile.size for tile in self.layout) * num_columns * self.state_bytes
        return whole if whole <= COLUMNS_SHARE * self.memory_gb * GB else widest

    def forward(self, examples: float) -> float:
        """FLOPs of forward passes."""
        return examples * self.request.forward_flops

    def times(self, examples: float, num_columns: int) -> float:
        """FLOPs of R V: a forward pass, and what the cheaper way of the tape takes."""
        return self.forward(examples) + self._flops(examples, num_columns, *self.ways(num_columns))

    def ggn_times(self, examples: float, num_columns: int, num_groups: int) -> float:
        """FLOPs of R^T (R V), some tiles of it at a time: R V is made for each group."""
        rows, columns = self.ggn_ways(num_columns)
        once_rows, once_columns = self.ways(num_columns)
        again = (num_groups - 1) * (once_columns if columns < rows else once_rows)
        total = num_groups * self.forward(examples)
        return total + self._flops(examples, num_columns, rows + again, columns + again, num_groups)

    def _flops(self, examples: float, num_columns: int, rows: float, columns: float, num_groups: int = 1) -> float:
        """Of the cheaper way; what passes take beside these operations is in the forward FLOPs only."""
        passed = self.request.coverage.passed if self.request.coverage else 0.0
        others = max(self.forward(1) - 2 * passed, 0.0)
        passes = 2 * num_columns if columns < rows else self.num_cotangents
        return examples * (2 * min(rows, columns) + num_groups * passes * others)

    def ways(self, num_columns: int) -> tuple[float, float]:
        """Multiplications of R V for one example, by rows and by columns; the tape takes the fewer."""
        coverage = self.request.coverage
        if coverage is None:
            return 0.0, 0.0
        rows = by_rows(coverage.counts, coverage.passed, self.num_cotangents, num_columns)
        return rows, pushed(coverage.passed, num_columns) if coverage.has_forward_mode else inf

    def ggn_ways(self, num_columns: int) -> tuple[float, float]:
        """The same of R^T (R V)."""
        coverage = self.request.coverage
        if coverage is None:
            return 0.0, 0.0
        given = (coverage.counts, coverage.passed, self.num_cotangents, num_columns)
        rows, columns = both_ways(*given, are_kept=self.keeps_rows)
        return rows, columns if coverage.has_forward_mode else inf


def _chunk_draws(plan: Sequence[Stage], request: FitRequest) -> dict[str, int]:
    """Stage of stored draws -> how many: up to where the next chunk begins."""
    if request.method.posterior != "draws":
        return {}
    numbers, method = chunks_of({stage.name: stage for stage in plan}), cast(DrawsMethod, request.method)
    ends = [*map(int, numbers[1:]), max((method.num_draws, *method.more_draws))]
    return {f"{CHUNK}{number}": end - int(number) for number, end in zip(numbers, ends, strict=True)}


def _protected(stage: Stage) -> Protected | None:
    return getattr(stage.recipe, "protected", None)


@dataclass(frozen=True)
class Expected:
    """Stands for an artifact where a recipe plans its units from a size."""

    num_landmarks: int
    num_probes: int
    num_features: int
    num_grams: int = 0

    @property
    def families(self) -> Sequence[str]:
        """Of the Grams of protected rows, one a layer."""
        return [f"gram-{layer:02d}" for layer in range(self.num_grams)]

    def table(self, name: str) -> pa.Table:
        """The landmarks' table has M rows."""
        return pa.table({"example": pa.nulls(self.num_landmarks)})

    def tensor(self, family: str) -> Tensor:
        """The cores' combination is (S, K)."""
        return torch.empty(self.num_probes, self.num_features, device="meta")
