"""What a configuration says about training a point estimate. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from afterfit.frozen import Frozen


class TrainingSettings(Frozen):
    """AdamW with a linear warm-up. Every field is part of the key."""

    epochs: PositiveInt
    """Passes over the training data."""

    batch_size: PositiveInt = 64
    """Examples of a step, at most: an epoch is cut into the fewest such batches, as even as possible."""

    learning_rate: PositiveFloat = 1e-3
    """Step size after the warm-up."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: falling to zero along half a cosine, or constant."""

    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of all steps over which the step size rises linearly."""

    weight_decay: NonNegativeFloat = 0.01
    """Decoupled decay, times the step size, of every trained weight."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread evenly over all classes; for the categorical likelihood."""

    gradient_clip: PositiveFloat | None = None
    """Largest length of the mean gradient (nats per example and unit of weight); none by default."""

    autocast: Literal["bfloat16"] | None = None
    """Run the matrix products of both passes in 16 bits; weights and moments keep their type."""

    train: str | list[str] = "*"
    """Glob or globs of the weights that are trained; the others stay as they are."""

    num_slices: PositiveInt = 1
    """Equal parts of a batch that up to so many workers share. Fixes the order of addition."""

    seed: NonNegativeInt = 0
    """Of the order of the examples and of dropout."""

    @model_validator(mode="after")
    def _slices_fit(self) -> Self:
        if self.num_slices > self.batch_size:
            raise ValueError("`num_slices` is above `batch_size`; a slice needs an example")
        return self
