"""A stock Hugging Face ViT of 2.7 M weights, all of them, with its default attention: what peers take minutes for.

    python jobs/benchmarks/stock_vit.py

512 synthetic images of 32 x 32, 10 classes, micro-batches of 8, one thread, CPU seconds; memory is what the process
holds for itself, interpreter and torch included. Measured on the same task, on a loaded machine of two cores:
laplace-torch 0.3 took 420 s for the diagonal in batches of 2 (more than 4 GB in batches of 8) and more than 4 GB to
predict 8 images; curvlinops 3.0.1 took 280 s for a sketch of 16 columns, with eager attention only.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.arithmetic import PLAIN
from afterfit.engine.events import PeakMemory
from afterfit.network.functional import Network
from afterfit.predict.linearised import linearise
from afterfit.resources import GB
from afterfit.rows import ggn_diagonal, ggn_times, row_backend
from networks import vit
from record import Target, open_record, show

IMAGES, MICRO_BATCH = 512, 8
MEMORY_GB = 0.5
TARGETS: Mapping[str, Target] = {
    "stock_vit_diag_cpu_s": ("<=", 100.0),
    "stock_vit_diag_mc1_cpu_s": ("<=", 20.0),
    "stock_vit_diag_gb": ("<=", 1.0),
    "stock_vit_sketch16_cpu_s": ("<=", 120.0),
    "stock_vit_predict8_gb": ("<=", 1.5),
}


def batches(images: Tensor) -> Iterator[dict[str, Tensor]]:
    """Micro-batches."""
    return ({"pixel_values": part} for part in images.split(MICRO_BATCH))


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, and the peak in GB."""
    started = time.process_time()
    with PeakMemory() as peak:
        run()
    return time.process_time() - started, peak.bytes / GB


def main() -> int:
    """All figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    budget = parser.parse_args().budget
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = vit(192, 6, 3).eval()
    images = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    figures: dict[str, float] = {}

    def measured(name: str, run: Callable[[], object]) -> None:
        figures[f"stock_vit_{name}_cpu_s"], figures[f"stock_vit_{name}_gb"] = timed(run)
        print(f"{name}: {figures[f'stock_vit_{name}_cpu_s']:.3g} CPU s, {figures[f'stock_vit_{name}_gb']:.3g} GB")

    network = Network(module)
    basis = {tile.name: torch.randn(tile.size, 16) for tile in network.layout}
    eight = Batch({"pixel_values": images[:8]}, None, torch.arange(8))
    measured("predict8", lambda: linearise(row_backend(network, MEMORY_GB, PLAIN), eight, basis, with_kernel=True))
    diagonal = partial(ggn_diagonal, module, memory_gb=MEMORY_GB)
    measured("diag", lambda: diagonal(batches(images)))
    measured("diag_mc1", lambda: diagonal(batches(images), num_samples=1))
    columns = torch.cat(list(basis.values()))
    measured("sketch16", lambda: ggn_times(module, batches(images), columns, memory_gb=MEMORY_GB))
    told = f"{IMAGES} synthetic images"
    return 1 if show(open_record("stock_vit", budget, TARGETS).adding(figures, stock_vit=told)) else 0


if __name__ == "__main__":
    sys.exit(main())
