"""What a piece of work may use. Never part of a key, save for `memory_gb`, which fixes micro-batches."""

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Of one worker."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
