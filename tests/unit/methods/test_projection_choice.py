"""Which solver a null-space posterior takes, over a table of sizes; every remedy that a refusal names is followed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from afterfit.errors import ConfigError
from afterfit.layout import Block, Layout
from afterfit.methods.null_space import NullSpace
from afterfit.methods.projection.choice import chosen, told
from afterfit.methods.projection.counts import MEASURED, Choice, RowCounts
from afterfit.methods.projection.problem import Problem
from afterfit.methods.projection.protected import Protected
from afterfit.network.likelihoods import Categorical
from afterfit.resources import GB


def layout(num_blocks: int, rows: int, width: int) -> Layout:
    blocks = tuple(Block(f"{number}.weight", (rows, width)) for number in range(num_blocks))
    return Layout(blocks, max(1 << 16, num_blocks * rows * width // 512))


NETWORKS = {
    "tiny": (layout(2, 24, 20), 3, 4e3),
    "lenet": (layout(6, 100, 74), 10, 8.5e5),  # 44 400 weights
    "resnet20": (layout(20, 100, 135), 10, 8.2e7),  # 270 000
    "vit": (layout(48, 768, 2330), 1000, 3.5e10),  # 86 M
}


@dataclass(frozen=True)
class Sized:
    """An outline."""

    layout: Layout
    num_outputs: int
    forward_flops: float
    num: int
    memory_gb: float = 2.0
    micro_batch: int = 32
    state_bytes: int = 4
    num_shards: int = 8
    seen: dict[str, int] = field(default_factory=dict)

    def num_examples(self, role: str) -> int:
        return self.num

    def shards(self, role: str) -> Sequence[range]:
        each = -(-self.num // self.num_shards)
        return [range(start, min(start + each, self.num)) for start in range(0, self.num, each)]


def outline(network: str, num: int, memory_gb: float = 2.0) -> Any:
    return Sized(*NETWORKS[network], num=num, memory_gb=memory_gb)


def problem(network: str, num: int, kernel: str = "predictive", memory_gb: float = 2.0, **given: Any) -> Problem:
    protected = Protected(kernel, Categorical(), num_examples=given.pop("num_protected", None))  # type: ignore[arg-type]
    asked = {"num_draws": 32, **given}
    return Problem(outline=outline(network, num, memory_gb), protected=protected, **asked)


TABLE = [
    *[("tiny", num, kernel, 2.0) for num in (1, 7, 64) for kernel in ("predictive", "loss", "per_layer")],
    *[("lenet", num, kernel, 2.0) for num in (500, 1000, 6000) for kernel in ("predictive", "loss", "per_layer")],
    *[("lenet", num, "loss", memory_gb) for num in (5000, 60000) for memory_gb in (2.0, 64.0)],
    *[("resnet20", num, kernel, 2.0) for num in (300, 500) for kernel in ("predictive", "per_layer")],
    *[("resnet20", num, "loss", 2.0) for num in (3000, 5000)],
    *[("vit", 50000, kernel, memory_gb) for kernel in ("predictive", "loss") for memory_gb in (2.0, 64.0)],
]


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize(("network", "num", "kernel", "memory_gb"), TABLE)
def test_auto_takes_the_cheapest_of_what_fits_and_reaches_the_tolerance_or_refuses(
    network, num, kernel, memory_gb, tolerance
):
    given = problem(network, num, kernel, memory_gb, tolerance=tolerance)
    able = {one for one in MEASURED if given.is_able(one)}
    if not able:
        with pytest.raises(ConfigError):
            chosen(given, "auto", "auto")
        return
    found = chosen(given, "auto", "auto")
    assert found in able
    assert given.residual(found) <= tolerance
    assert given.held_bytes(found) <= memory_gb * GB
    assert given.flops(found) == min(given.flops(one) for one in able)


@pytest.mark.parametrize(
    ("network", "num", "kernel", "memory_gb", "expected"),
    [
        ("lenet", 100, "predictive", 2.0, {"exact"}),
        ("lenet", 5000, "loss", 2.0, {"exact"}),
        ("resnet20", 3000, "loss", 2.0, {"exact", "cg with cholesky"}),
        ("resnet20", 300, "predictive", 2.0, {"exact", "cg with cholesky"}),
        ("vit", 50000, "loss", 64.0, {"exact", "cg with cholesky"}),
    ],
)
def test_known_sizes_have_the_solver_that_measurements_speak_for(network, num, kernel, memory_gb, expected):
    assert str(chosen(problem(network, num, kernel, memory_gb), "auto", "auto")) in expected


CLAUSES = {
    r"raise `memory_gb` to ([\d.e+]+)": "memory_gb",
    r"set `method.num_protected` to (\d+)": "num_protected",
    r"set `method.draws_at_once` to (\d+)": "draws_at_once",
    r"set `method.block_size` to (\d+)": "block_size",
    r"set `method.max_passes` to (\d+)": "max_passes",
    r"set `method.kernel: (loss)`(?! and)": "kernel",
    r"set `method.tolerance: ([\d.e-]+)`": "tolerance",
    r"set `method.kernel: (loss)` and `method.tolerance: ([\d.e-]+)`": "kernel tolerance",
}


def followed(sentence: str) -> list[dict[str, Any]]:
    """What each clause of a refusal asks for."""
    kinds = {"kernel": str, "memory_gb": float, "tolerance": float}
    found = []
    for pattern, names in CLAUSES.items():
        if match := re.search(pattern, sentence):
            pairs = zip(names.split(), match.groups(), strict=True)
            found.append({name: kinds.get(name, int)(value) for name, value in pairs})
    return found


REFUSED = [
    ("lenet", 60000, "loss", 2.0, {}),
    ("lenet", 6000, "predictive", 2.0, {}),
    ("lenet", 1000, "predictive", 2.0, {"tolerance": 1e-9}),
    ("resnet20", 5000, "predictive", 2.0, {"tolerance": 1e-7}),
    ("resnet20", 2000, "per_layer", 2.0, {}),
    ("vit", 50000, "predictive", 2.0, {}),
    ("vit", 50000, "predictive", 64.0, {}),
    ("vit", 50000, "loss", 2.0, {}),
    ("lenet", 60000, "loss", 2.0, {"tolerance": 1e-3, "max_passes": 20}),
    ("lenet", 60000, "predictive", 2.0, {"solver": "exact"}),
    ("lenet", 60000, "predictive", 2.0, {"solver": "cg"}),
    ("lenet", 60000, "loss", 2.0, {"preconditioner": "cholesky"}),
    ("lenet", 60000, "loss", 2.0, {"solver": "cg", "preconditioner": "none"}),
    ("lenet", 60000, "predictive", 2.0, {"solver": "alternating", "block_size": 5000}),
    ("vit", 50000, "predictive", 2.0, {"solver": "exact"}),
]


def planned(network: str, num: int, memory_gb: float, **choices: Any) -> list[str]:
    method = NullSpace.model_validate(choices)
    return list(method.stages(Categorical(), outline(network, num, memory_gb)))


@pytest.mark.parametrize(("network", "num", "kernel", "memory_gb", "choices"), REFUSED)
def test_every_remedy_of_a_refusal_makes_the_plan_go_through(network, num, kernel, memory_gb, choices):
    asked = {"kernel": kernel, **choices}
    with pytest.raises(ConfigError) as refusal:
        planned(network, num, memory_gb, **asked)
    sentence = str(refusal.value)
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")
    remedies = followed(sentence)
    clauses = sentence.partition("; ")[2]
    assert len(remedies) == len(re.findall(r"raise |set ", clauses))
    if choices.get("tolerance") != 1e-9:
        assert remedies, sentence
    for remedy in remedies:
        changed = {**asked, **remedy}
        assert planned(network, num, changed.pop("memory_gb", memory_gb), **changed), remedy


def test_a_tolerance_below_all_that_solvers_reach_is_told_the_least_that_one_does():
    with pytest.raises(ConfigError, match=r"`method.tolerance: 1e-09` within 200 passes; .*`method.tolerance: 1e-08`"):
        planned("lenet", 100, 2.0, tolerance=1e-9)


@pytest.mark.parametrize("choice", [one for one in MEASURED if one.preconditioner != "nystrom"], ids=str)
@pytest.mark.parametrize(("network", "num"), [("tiny", 7), ("lenet", 500), ("resnet20", 300)])
def test_what_is_named_is_taken_whatever_is_expected_of_it(choice, network, num):
    given = problem(network, num, tolerance=1e-8, max_passes=10)
    preconditioner = choice.preconditioner if choice.solver == "cg" else "auto"
    assert chosen(given, choice.solver, preconditioner) == choice


def test_a_named_preconditioner_asks_for_conjugate_gradients():
    assert chosen(problem("lenet", 100), "auto", "sweep") == Choice("cg", "sweep")
    with pytest.raises(ConfigError, match=r"'sweep' has no part in the solver 'exact'; set `method.solver: cg`"):
        chosen(problem("lenet", 100), "exact", "sweep")


def test_conjugate_gradients_have_the_best_preconditioner_that_fits():
    assert chosen(problem("lenet", 500, tolerance=1e-9), "cg", "auto") == Choice("cg", "cholesky")
    assert not problem("lenet", 6000).fits(Choice("cg", "cholesky"))


def test_the_preconditioner_nystrom_needs_a_basis():
    assert not problem("lenet", 100).fits(Choice("cg", "nystrom"))
    assert problem("lenet", 100, global_basis=20).fits(Choice("cg", "nystrom"))


def test_conjugate_gradients_count_the_directions_that_they_keep():
    given = problem("lenet", 60000, "loss")
    directions = 2 * 8 * 60000 * 32 * 100
    assert directions > 2 * GB
    assert not given.fits(Choice("cg"))
    assert problem("lenet", 60000, "loss", draws_at_once=4).fits(Choice("cg"))


def test_a_gram_in_groups_of_tiles_makes_its_rows_once_a_group():
    whole, cut = (RowCounts(Protected("predictive", Categorical()), outline("vit", 10, gb)) for gb in (8000.0, 20.0))
    products = 2.0 * 2 * sum(min(1024, 10**4 - top) * min(top + 1024, 10**4) for top in range(0, 10**4, 1024))
    products *= whole.outline.layout.num_weights
    once = 10 * whole.making
    assert whole.gram_flops(is_exact=True) == pytest.approx(once + products)
    made = cut.gram_flops(is_exact=True) - products
    assert made / once == pytest.approx(len(cut._units))
    assert made / once > 8


def test_a_gram_of_pairs_of_chunks_makes_the_rows_of_both():
    counts = RowCounts(Protected("predictive", Categorical()), outline("vit", 9, 2.0))
    pairs = {(left, right) for left, right, _ in counts._units}
    assert any(right is not None for _, right in pairs)
    examples = sum(left + (right or 0) for left, right, _ in counts._units)
    entries = counts.gram_flops(is_exact=False) - examples * counts.making
    assert 1.0 < entries / (float(counts.num_rows) ** 2 * counts.outline.layout.num_weights) < 1.5


def test_a_float64_gram_counts_twice_a_float32_one():
    counts = RowCounts(Protected("loss", Categorical()), outline("resnet20", 5000))
    made = sum(left + (right or 0) for left, right, _ in counts._units) * counts.making
    exact, half = (counts.gram_flops(is_exact=is_exact) - made for is_exact in (True, False))
    assert exact == pytest.approx(2 * half)
    assert counts.gram_bytes(is_exact=True) > counts.gram_bytes(is_exact=False)
    assert counts.factor_bytes(is_exact=True) == 2 * counts.factor_bytes(is_exact=False)


def test_layers_with_rows_of_their_own_cost_a_gram_each_of_rows_that_are_as_many():
    whole, layered = (
        RowCounts(Protected(kernel, Categorical()), outline("resnet20", 100))  # type: ignore[arg-type]
        for kernel in ("predictive", "per_layer")
    )
    assert (layered.num_layers, layered.num_rows) == (20, whole.num_rows)
    assert layered.gram_flops(is_exact=True) == whole.gram_flops(is_exact=True)
    assert layered.factor_flops(is_exact=True) == 20 * whole.factor_flops(is_exact=True)
    assert layered.gram_bytes(is_exact=True) > whole.gram_bytes(is_exact=True)


def test_a_gram_counts_once_and_passes_count_for_each_run_of_draws():
    few, many = (problem("lenet", 1000, num_draws=num, draws_at_once=8) for num in (8, 80))
    assert many.flops(Choice("cg")) == pytest.approx(10 * few.flops(Choice("cg")))
    assert many.flops(Choice("exact")) < 2 * few.flops(Choice("exact"))


def test_the_sentence_names_the_choice_what_it_reaches_and_why_others_were_left():
    given = problem("lenet", 60000, "loss", tolerance=1e-3, block_size=50)
    said = told(given, ("auto", "auto"), chosen(given, "auto", "auto"))
    assert said.startswith("Projection by alternating: 60000 rows, 32 draws together, expected to reach 1e-03, ")
    assert re.search(r"exact: needs 57\.6 GB or more; cg with cholesky: needs 2[89]\.\d GB or more", said)
    assert "cg with nystrom: needs `method.global_basis`" in said
    assert said.count(".\n") == 0
    assert said.endswith(".")


def test_the_sentence_says_what_a_named_solver_will_miss():
    given = problem("lenet", 100)
    said = told(given, ("alternating", "auto"), chosen(given, "alternating", "auto"))
    assert "Projection by alternating, as asked: 1000 rows" in said
    assert "expected to reach 1e-03, above `method.tolerance: 0.0001`" in said
    assert re.search(r"; exact: [\d.]+ TFLOP", said)
