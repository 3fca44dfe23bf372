"""Curvature products by the tape, by reverse mode over the weights, by curvlinops and beside a training step.

    python jobs/benchmarks/rows.py [--only vit2m7] [--columns 32]

AFTERFIT_PEER_PACKAGES names a `site-packages` folder that has curvlinops, beside the same torch.

One GGN product with k columns over one micro-batch, exact cotangents (C - 1 an example) or one Monte Carlo cotangent
an example (a token, for the language model). All are timed in turns on one thread, in CPU seconds; the quickest of
the rounds counts. FLOPs are counted by torch.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from afterfit.algebra import Batch
from afterfit.engine.events import PeakMemory
from afterfit.network.cifar_resnet import resnet20
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Categorical
from afterfit.network.tokens import TokenCategorical
from afterfit.resources import GB
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.protocol import Cotangents, RowBackend
from afterfit.rows.tape import TapeBackend
from afterfit.seeds import Seed
from networks import minilm, vit
from record import Target, open_record, show

COLUMNS = (1, 8, 32, 128)
MEMORY_GB = 1.5
"""Of which the tape takes 35 % for rows that it keeps and for gradients."""
LARGEST_GB = 12.0
"""Of V and G V together, on this machine. Where they are more, the tiles of V share one piece of memory, like those of
probes that are made when they are needed."""
ROUNDS = 3
CURVLINOPS_COLUMNS = 4
"""It takes columns one after another: more are as many times slower."""


class Flat(nn.Module):
    """A module's logits as (B, C), those of all tokens in one row."""

    def __init__(self, module: nn.Module, key: str):
        super().__init__()
        self.module = module
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """(B, C)."""
        made = self.module(**{self.key: x}) if self.key else self.module(x)
        return getattr(made, "logits", made).flatten(1)


@dataclass(frozen=True)
class Case:
    """A network with random weights, and a micro-batch."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    num_outputs: int  # of an example, or of a token
    is_language_model: bool = False

    @property
    def cotangent_kinds(self) -> tuple[str, ...]:
        """Suffixes of the figures: exact, and Monte Carlo; a vocabulary is too large for exact ones."""
        return ("_mc1",) if self.is_language_model else ("", "_mc1")


def _vit(width: int, depth: int, heads: int, attention: str = "eager") -> nn.Module:
    return Flat(vit(width, depth, heads, attention), "pixel_values")


def _llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=288,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=768,
        tie_word_embeddings=True,
    )
    return Flat(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), "input_ids")


def _images(num: int) -> Tensor:
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _tokens(vocabulary: int, num: int, length: int) -> Tensor:
    return torch.randint(0, vocabulary, (num, length), generator=torch.Generator().manual_seed(1))


CASES = (
    Case("vit2m7", partial(_vit, 192, 6, 3), partial(_images, 4), 10),
    Case("vit2m7sdpa", partial(_vit, 192, 6, 3, "sdpa"), partial(_images, 4), 10),
    Case("vit22m", partial(_vit, 384, 12, 6), partial(_images, 4), 10),
    Case("resnet20", lambda: Flat(resnet20(), ""), partial(_images, 32), 10),
    Case("minilm", lambda: Flat(minilm(), "input_ids"), partial(_tokens, 30522, 4, 64), 3),
    Case("llama15m", _llama, partial(_tokens, 32000, 2, 64), 32000, is_language_model=True),
)
TARGETS: Mapping[str, Target] = {
    "flops_per_column_over_step_vit2m7_k32": ("<=", 0.30),
    "flops_per_column_over_step_vit2m7_k128": ("<=", 0.145),
    "flops_per_column_over_step_vit2m7_k128_mc1": ("<=", 0.02),
    **{f"speedup_over_curvlinops_{net}_k32": (">=", 4.0) for net in ("vit2m7", "vit22m")},
    **{f"speedup_over_curvlinops_{net}_k128": (">=", 8.0) for net in ("vit2m7", "vit22m")},
    **{f"speedup_over_jvp_vjp_{net}_k1": (">=", 1 / 1.3) for net in ("vit2m7", "vit22m", "resnet20", "minilm")},
    **{f"extra_gb_{case.name}_k32{kind}": ("<=", 0.512) for case in CASES for kind in case.cotangent_kinds},
}


class Bench:
    """One network: its contenders on the same micro-batch."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        self.case = case
        self.network = Network(case.build().eval())
        self.inputs = case.inputs()
        self.batch = Batch({"x": self.inputs}, None, torch.arange(len(self.inputs)))

    def cotangents(self, kind: str) -> Cotangents:
        """Exact, or one drawn for each example or token."""
        if kind == "":
            return Categorical().root

        # Of every token, the last one too, as curvlinops draws them.
        meaning = TokenCategorical(is_causal=False).on(self.batch) if self.case.is_language_model else Categorical()
        return lambda outputs_BC: meaning.sample_cotangents(outputs_BC, Seed(0), self.batch.indexes, 1)

    def columns(self, num: int) -> dict[str, Tensor]:
        """Random V, in tiles."""
        generator, layout = torch.Generator().manual_seed(2), self.network.layout
        if held_gb(layout.num_weights, 2 * num) <= LARGEST_GB:
            return {tile.name: torch.randn(tile.size, num, generator=generator) for tile in layout}
        shared = torch.randn(max(tile.size for tile in layout), num, generator=generator)
        return {tile.name: shared[: tile.size] for tile in layout}

    def product(
        self, backend: RowBackend, kind: str, columns: Mapping[str, Tensor], into: Mapping[str, Tensor]
    ) -> None:
        """R^T R V."""
        num_columns = next(iter(columns.values())).shape[1]
        for part in backend.rows(self.batch, self.cotangents(kind)).parts(num_columns):
            part.transpose_times(part.times(columns), into)

    def step(self) -> None:
        """What training takes: a forward pass, a loss, and a backward pass to the weights."""
        weights = {name: weight.requires_grad_() for name, weight in self.network.weights.items()}
        outputs_XC = self.network({"x": self.inputs}, weights).view(-1, self.case.num_outputs)
        targets_X = torch.zeros(len(outputs_XC), dtype=torch.int64)
        torch.autograd.grad(torch.nn.functional.cross_entropy(outputs_XC, targets_X), list(weights.values()))

    def jvp_vjp(self, columns: Mapping[str, Tensor]) -> None:
        """One column as any library does it: a pass forward, a pass back."""
        flat = {name: tile_Pk[:, 0] for name, tile_Pk in columns.items()}
        direction, weights = self.network.layout.assemble(flat), self.network.weights

        def outputs_of(replaced: Mapping[str, Tensor]) -> Tensor:
            return self.network({"x": self.inputs}, replaced)

        with torch.no_grad():
            outputs_BC, moved_BC = torch.func.jvp(outputs_of, (weights,), (direction,))[:2]
            pull = torch.func.vjp(outputs_of, weights)[1]
            pull((Categorical().hessian(outputs_BC) @ moved_BC[:, :, None])[:, :, 0])

    def curvlinops(self, kind: str, num_columns: int) -> Callable[[], None] | None:
        """Its GGN operator on some columns; None where it is not installed, or cannot take fused attention."""
        if self.case.name.endswith("sdpa"):
            return None
        try:
            peer = import_module("curvlinops")
        except ImportError:
            return None
        case, module = self.case, self.network.module
        targets = torch.zeros(
            len(self.inputs), *([self.inputs.shape[1]] if case.is_language_model else []), dtype=torch.int64
        )
        if case.is_language_model:  # (examples, classes, tokens), as the loss takes them
            module = _ClassesFirst(module, case.num_outputs)
        operator = (peer.FisherMCLinearOperator if kind else peer.GGNLinearOperator)(
            module,
            nn.CrossEntropyLoss(reduction="sum"),
            list(module.parameters()),
            [(self.inputs, targets)],
            check_deterministic=False,
        )
        columns = torch.randn(self.network.layout.num_weights, min(CURVLINOPS_COLUMNS, num_columns))
        return lambda: operator @ columns


def held_gb(num_weights: int, num_columns: int) -> float:
    """Of so many columns in float32."""
    return num_weights * num_columns * 4 / GB


class _ClassesFirst(nn.Module):
    def __init__(self, module: nn.Module, num_classes: int):
        super().__init__()
        self.module = module
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T)."""
        return self.module(x).view(len(x), -1, self.num_classes).transpose(1, 2)


def measure(case: Case, num_columns: int) -> dict[str, float]:
    """Figures of one network and number of columns."""
    bench = Bench(case)
    figures: dict[str, float] = {}
    columns = bench.columns(num_columns)
    into = {name: torch.zeros_like(tile) for name, tile in columns.items()}
    for kind in case.cotangent_kinds:
        gc.collect()
        with PeakMemory() as stepping:
            bench.step()
        tape, functional = TapeBackend(bench.network, MEMORY_GB), FunctionalBackend(bench.network, MEMORY_GB)
        by_tape = partial(bench.product, tape, kind, columns, into)
        with PeakMemory() as peak:
            by_tape()
        contenders = {"tape": by_tape, "step": bench.step}
        if num_columns <= 32:  # the ratio hardly changes beyond
            contenders["functional"] = partial(bench.product, functional, kind, columns, into)
        if peer := bench.curvlinops(kind, num_columns):
            contenders["curvlinops"] = peer
        if num_columns == 1 and kind == "" and not case.name.endswith("sdpa"):  # fused attention has no forward mode
            contenders["jvp_vjp"] = partial(bench.jvp_vjp, columns)
        flops, seconds = {}, dict.fromkeys(contenders, float("inf"))
        for name in ("tape", "step"):
            with FlopCounterMode(display=False) as counter:
                contenders[name]()
            flops[name] = counter.get_total_flops()
        for _ in range(ROUNDS):
            for name, run in contenders.items():
                started = time.process_time()
                run()
                seconds[name] = min(seconds[name], time.process_time() - started)
        of = f"{case.name}_k{num_columns}{kind}"
        figures[f"flops_per_column_over_step_{of}"] = flops["tape"] / flops["step"] / num_columns
        figures[f"seconds_per_column_over_step_{of}"] = seconds["tape"] / seconds["step"] / num_columns
        figures[f"gflops_per_second_{of}"] = flops["tape"] / seconds["tape"] / 1e9
        figures[f"seconds_{of}"] = seconds["tape"]
        figures[f"peak_gb_{of}"] = peak.bytes / GB
        figures[f"extra_gb_{of}"] = max(peak.bytes - stepping.bytes, 0) / GB
        for other in {"functional", "jvp_vjp"} & set(seconds):
            figures[f"speedup_over_{other}_{of}"] = seconds[other] / seconds["tape"]
        if peer:
            each = seconds["curvlinops"] / min(CURVLINOPS_COLUMNS, num_columns)
            figures[f"speedup_over_curvlinops_{of}"] = each * num_columns / seconds["tape"]
        print({name.replace(f"_{of}", ""): f"{value:.4g}" for name, value in figures.items() if name.endswith(of)}, of)
    return figures


def main() -> int:
    """Every network and number of columns; what does not fit the machine is left out and said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=("hour", "full"), default="hour")
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--columns", type=int, choices=COLUMNS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.extend(filter(None, [os.environ.get("AFTERFIT_PEER_PACKAGES")]))
    for case in CASES:
        for num_columns in COLUMNS:
            if given.only not in (None, case.name) or given.columns not in (None, num_columns):
                continue
            size = Network(case.build().eval()).layout.num_weights
            if held_gb(size, num_columns) > LARGEST_GB:
                print(f"{case.name} is left out: {num_columns} columns take {held_gb(size, num_columns):.0f} GB.")
                continue
            made = measure(case, num_columns)
            open_record("rows", given.budget, TARGETS).adding(
                made, **{case.name: f"{len(case.inputs())} random examples"}
            )
    return 1 if show(open_record("rows", given.budget, TARGETS)) else 0


if __name__ == "__main__":
    sys.exit(main())
