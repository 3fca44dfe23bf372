"""What a piece of work may use. Never part of a key, save for `memory_gb`, which fixes micro-batches."""

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Of one worker."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of the devices that do the work, in GB; None where it is not known, or where no GPU does any."""

    machine_gb: float | None = None
    gpu_gb: float | None = None


SIGNS = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "ALLOC_FAILED")
"""In the messages of torch's errors that have no class of their own: of the CPU, of CUDA, and of its libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of Python and Arrow, or of torch on any device."""
    is_torch = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or is_torch
