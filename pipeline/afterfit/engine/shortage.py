"""Lack of memory, told where it happens: only there is it known how much the device has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from afterfit.errors import AfterfitError, ConfigError, OutOfMemoryError
from afterfit.resources import GB, Memory, is_out_of_memory


@contextmanager
def told_shortage() -> Iterator[None]:
    """Every error of memory in the block becomes one kind.

    Raises:
        OutOfMemoryError: with what the GPU has, if it ran out there, or else this machine.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AfterfitError) or not is_out_of_memory(error):
            raise
        on_gpu = torch.cuda.is_initialized() and "CPU" not in str(error) and isinstance(error, RuntimeError)
        sentence = f"A worker ran out of memory ({str(error).strip().splitlines()[0] if str(error) else 'no more'})."
        raise OutOfMemoryError(sentence, has_gb=gpu_gb() if on_gpu else machine_gb(), on_gpu=on_gpu) from error


def memory_here(*, has_gpu: bool) -> Memory:
    """Of this machine, and of its GPU where that does work too."""
    return Memory(machine_gb=machine_gb(), gpu_gb=gpu_gb() if has_gpu and torch.cuda.is_available() else None)


def check_gpu() -> None:
    """Refuse to work on a GPU where there is none.

    Raises:
        ConfigError: if torch finds none.
    """
    if not torch.cuda.is_available():
        raise ConfigError("torch finds no GPU on this machine; leave out `--gpus`, or take a machine that has one.")


def machine_gb() -> float:
    """Memory of this machine."""
    return psutil.virtual_memory().total / GB


def gpu_gb() -> float:
    """Memory of this process's GPU."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GB
