"""Which examples a training step takes and how far it goes: pure functions of the settings and the step's number."""

import math
from dataclasses import dataclass

from afterfit.training.epochs import Epochs, part
from afterfit.training.settings import TrainingSettings


@dataclass(frozen=True)
class Schedule:
    """Of one training run over a data set of known length."""

    settings: TrainingSettings
    num_examples: int

    @property
    def epochs(self) -> Epochs:
        """The batches."""
        settings = self.settings
        return Epochs(self.num_examples, settings.batch_size, settings.epochs, settings.seed)

    def slice(self, step: int, number: int) -> list[int]:
        """Indexes of the examples of one slice of a step; the slices' sizes differ by at most one."""
        batch = self.epochs.batch(step)
        return batch[part(len(batch), number, self.settings.num_slices)]

    def learning_rate(self, step: int) -> float:
        """Step size of a step."""
        peak, total = self.settings.learning_rate, self.epochs.num_steps
        warmup = round(self.settings.warmup_fraction * total)
        if step < warmup:
            return peak * (step + 1) / warmup
        if self.settings.schedule == "constant":
            return peak
        return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
