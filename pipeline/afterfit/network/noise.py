"""Named randomness for code that draws from torch's global generators: initialisers, dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from afterfit.seeds import Seed


@contextmanager
def named_noise(seed: Seed, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, the generators of CPU and `device` start at this place; afterwards they are as before."""
    place = torch.device(device)
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed.key())
        if devices:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed.key())
        yield
