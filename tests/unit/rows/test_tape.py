"""The tape against dense Jacobians: on every network of the table, and on layers in every setting."""

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from afterfit.algebra import Batch
from afterfit.network.functional import Network
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.protocol import unit_cotangents
from afterfit.rows.tape import TapeBackend
from cases import ATTENTION_CASES, NETWORK_CASES, assert_near, case_named, dense_jacobian
from row_checks import (
    assert_every_verb_is_dense,
    by_tile,
    dense_rows,
    joined,
    numbers,
    some_cotangents,
    squared,
    transposed,
)

on_every_network = pytest.mark.parametrize("case", NETWORK_CASES, ids=str)

SMALL_GB = 1e-6
"""No cotangent's gradients, and no rows, fit: everything is made in parts, and again for each verb."""


@on_every_network
@pytest.mark.parametrize("batch_number", [0, -1], ids=["full", "short"])
@pytest.mark.parametrize("memory_gb", [2.0, SMALL_GB], ids=["kept", "made again"])
def test_every_verb_agrees_with_the_dense_jacobian(case, batch_number, memory_gb):
    network, batch = case.network(), case.batches[batch_number]
    backend = TapeBackend(network, memory_gb)
    rows = backend.rows(batch, some_cotangents(3))
    assert len(list(rows.parts())) == (1 if memory_gb == 2.0 else 3)
    assert_every_verb_is_dense(network, batch, rows, case.rtol)
    assert backend.coverage(batch).fraction == 1


@on_every_network
def test_parts_are_the_rows_in_order(case):
    network, batch = case.network(), case.batches[0]
    rows = TapeBackend(network, SMALL_GB).rows(batch, some_cotangents(3))
    columns = by_tile(network.layout, numbers("columns", network.layout.num_weights, 7))
    assert_near(torch.cat([part.times(columns) for part in rows.parts()], dim=1), rows.times(columns), case.rtol)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
@pytest.mark.parametrize("num_columns", [1, 6])
def test_eager_attention_is_served_as_the_fused_one(case, num_columns):
    network, batch = case.network(attention="eager"), case.batches[0]
    rows = TapeBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, num_columns)
    expected_BSk = dense_rows(network, batch, rows) @ columns_Pk
    assert_near(rows.times(by_tile(network.layout, columns_Pk)), expected_BSk, case.eager_rtol)
    assert_near(joined(squared(network.layout, rows)), dense_rows(network, batch, rows).square().sum((0, 1)), 1e-5)


@on_every_network
def test_a_micro_batch_of_one_is_the_same_example_alone(case):
    network, batch = case.network(), case.examples.batch([3])
    rows = TapeBackend(network).rows(batch, some_cotangents(2))
    assert_every_verb_is_dense(network, batch, rows, case.rtol)


@on_every_network
def test_zero_cotangents_give_exact_zeros(case):
    network, batch = case.network(), case.batches[0]
    rows = TapeBackend(network).rows(batch, lambda outputs_BC: torch.zeros(len(outputs_BC), 2, case.num_outputs))
    columns = by_tile(network.layout, numbers("columns", network.layout.num_weights, 3))
    assert torch.count_nonzero(rows.times(columns)) == 0
    assert torch.count_nonzero(rows.gram()) == 0
    assert torch.count_nonzero(joined(squared(network.layout, rows))) == 0


@on_every_network
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_narrow_networks_have_float32_rows_and_float64_sums(case, dtype, rtol):
    network, exact, batch = case.network(dtype=dtype), case.network(), case.batches[0]
    rows = TapeBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, 4)
    product = rows.times(by_tile(network.layout, columns_Pk))
    assert product.dtype == rows.gram().dtype == torch.float64
    assert joined(squared(network.layout, rows)).dtype == torch.float32
    # A forward and a backward pass lose a factor of 100 of the unit roundoff here at most; bfloat16's is 4e-3.
    assert_near(product, rows.cotangents_BSC.double() @ dense_jacobian(exact, batch) @ columns_Pk, rtol)


@pytest.mark.parametrize("name", ["conv_net", "bert", "llama"])
def test_some_tiles_are_the_slices_of_all(name):
    network, batch = case_named(name).network(), case_named(name).batches[0]
    rows = TapeBackend(network).rows(batch, some_cotangents(2))
    chosen = network.layout.tiles[1::2]
    weights_BSk = numbers("weights", len(batch), 2, 3)
    whole, some = (transposed(network.layout, rows, weights_BSk, tiles) for tiles in (None, chosen))
    assert list(some) == [tile.name for tile in chosen]
    for tile in some:
        assert torch.equal(some[tile], whole[tile])


# Layers.


def tape_is_dense(module: nn.Module, *inputs: Tensor, covered: bool = True, weights: str = "*") -> None:
    """Every verb on a module that takes `first`, `second`, ..., of which nothing is left to reverse mode."""
    module = module.double().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(numbers(name, *weight.shape))
    network = Network(module, weights, tile_weights=17)
    batch = Batch(dict(zip(("first", "second"), inputs, strict=False)), None, torch.arange(len(inputs[0])))
    backend = TapeBackend(network)
    assert_every_verb_is_dense(network, batch, backend.rows(batch, some_cotangents(3)), 1e-10)
    coverage = backend.coverage(batch)
    assert (coverage.fraction == 1) == covered, coverage.sentence()


class Applied(nn.Module):
    """A function of inputs and of modules or weights, flattened to (B, C)."""

    def __init__(self, function, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.function = function

    def forward(self, first, second=None):
        given = (first,) if second is None else (first, second)
        return self.function(self, *given).flatten(1)


@strategies.composite
def convolutions(draw):
    """Settings of a convolution of one or two dimensions, and a batch for it."""
    dimensions = draw(strategies.sampled_from([1, 2]))
    groups = draw(strategies.sampled_from([1, 1, 2, 3]))
    each = [draw(strategies.integers(1, 3)) for _ in range(dimensions)]
    stride = [draw(strategies.integers(1, 3)) for _ in range(dimensions)]
    dilation = [draw(strategies.integers(1, 2)) for _ in range(dimensions)]
    padding = draw(
        strategies.one_of(
            strategies.just("valid"),
            strategies.lists(strategies.integers(0, 2), min_size=dimensions, max_size=dimensions).map(tuple),
        )
    )
    settings = {
        "in_channels": groups * draw(strategies.integers(1, 2)),
        "out_channels": groups * draw(strategies.integers(1, 3)),
        "kernel_size": tuple(each),
        "stride": tuple(stride),
        "dilation": tuple(dilation),
        "padding": padding,
        "groups": groups,
        "bias": draw(strategies.booleans()),
        "padding_mode": draw(strategies.sampled_from(["zeros", "circular"])),
    }
    sizes = [draw(strategies.integers(5, 7)) for _ in range(dimensions)]
    return dimensions, settings, (draw(strategies.integers(1, 3)), settings["in_channels"], *sizes)


@hypothesis.settings(max_examples=40)
@hypothesis.given(convolutions())
def test_convolutions_of_every_setting(drawn):
    dimensions, settings, shape = drawn
    layer = (nn.Conv1d, nn.Conv2d)[dimensions - 1](**settings)
    tape_is_dense(Applied(lambda self, x: self.layer(x).tanh(), layer=layer), numbers("x", *shape))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_the_same_padding_on_both_sides_has_a_rule_and_another_has_none():
    for kernel, covered in ((3, True), (2, False)):
        layer = nn.Conv2d(2, 3, kernel, padding="same")
        tape_is_dense(Applied(lambda self, x: self.layer(x), layer=layer), numbers("x", 2, 2, 4, 5), covered=covered)


@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), Conv1D(3, 5)], ids=str)
def test_linear_layers_over_any_positions(layer, positions):
    tape_is_dense(Applied(lambda self, x: self.layer(x), layer=layer), numbers("x", 3, *positions, 5))


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(4),
        nn.LayerNorm((3, 4)),
        nn.LayerNorm(4, bias=False),
        nn.RMSNorm(4),
        nn.GroupNorm(3, 3),
        nn.BatchNorm1d(3),
    ],
    ids=str,
)
def test_norms(layer):
    tape_is_dense(Applied(lambda self, x: self.layer(x).tanh(), layer=layer), numbers("x", 5, 3, 4))


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4)], ids=str)
def test_norms_of_pictures(layer):
    tape_is_dense(Applied(lambda self, x: self.layer(x).tanh(), layer=layer), numbers("x", 3, 4, 2, 3))


def test_embeddings_with_and_without_a_padding_row():
    tokens = torch.tensor([[0, 1, 1], [2, 0, 4]])
    for padding in (None, 0, -1):
        layer = nn.Embedding(5, 3, padding_idx=padding)
        tape_is_dense(Applied(lambda self, x: self.layer(x).tanh(), layer=layer), tokens)


def test_positions_and_types_that_are_looked_up_without_the_data():
    def forward(self, x):
        where = torch.arange(x.shape[1])
        kinds = torch.zeros(x.shape[:2], dtype=torch.int64)
        return (x + self.where(where[None]) + self.kinds(kinds) + self.where(where)).tanh()

    tape_is_dense(Applied(forward, where=nn.Embedding(6, 2), kinds=nn.Embedding(2, 2)), numbers("x", 3, 4, 2))


BARE = {
    "class token": lambda self, x: torch.cat([self.weight.expand(len(x), -1, -1), x], dim=1).tanh(),
    "positions": lambda self, x: (x + self.weight).tanh(),
    "scale": lambda self, x: (self.weight * x.flatten(0, 1).view(-1, 2, 2)).view(len(x), -1),
    "divisor": lambda self, x: x / self.weight,
    "minuend": lambda self, x: self.weight - x * x,
    "one plus": lambda self, x: (x * (1 + self.weight)).tanh(),
    "cast": lambda self, x: x * self.weight.to(torch.float64) + self.weight.tanh().repeat(len(x), 1, 1),
    "in place": lambda self, x: x.clone().mul_(self.weight).add_(self.weight).tanh(),
    "used twice": lambda self, x: (x * self.weight) @ self.weight[0].T,
}


@pytest.mark.parametrize("use", BARE)
def test_bare_weights(use):
    is_covered = use != "used twice"  # a part of it is a factor of a product
    weight = torch.ones(1, 2, 2) if use != "scale" else torch.ones(2)
    tape_is_dense(Applied(BARE[use], weight=weight), numbers("x", 3, 2, 2), covered=is_covered)


def test_tied_weights_add_up():
    def forward(self, tokens):
        return F.linear(self.embedding(tokens).tanh(), self.embedding.weight) @ self.embedding.weight

    tape_is_dense(Applied(forward, embedding=nn.Embedding(5, 3)), torch.tensor([[0, 1, 1], [2, 0, 4]]))


def test_a_layer_that_is_called_twice_and_another_in_a_longer_batch():
    def forward(self, x):
        windows = self.layer(x).tanh().view(-1, 2, 3)  # each example becomes two, as shifted windows do
        return self.layer(windows).view(len(x), -1) + self.layer(x.tanh()).flatten(1)

    tape_is_dense(Applied(forward, layer=nn.Linear(3, 3)), numbers("x", 2, 4, 3))


def test_only_some_weights_may_be_chosen():
    module = Applied(lambda self, x: self.second(self.first(x).tanh()), first=nn.Linear(3, 4), second=nn.Linear(4, 2))
    for weights in ("second.weight", "first.bias", "*.weight", "second.*"):
        tape_is_dense(module, numbers("x", 3, 3), weights=weights)


def test_what_changes_a_layers_output_in_place_does_not_change_its_rows():
    module = Applied(lambda self, x: F.relu(self.layer(x), inplace=True) * 1.5, layer=nn.Conv2d(1, 2, 2))
    tape_is_dense(module, numbers("x", 3, 1, 3, 3))


@pytest.mark.parametrize("again", [1, 2], ids=["once", "twice"])
def test_checkpointed_layers_are_run_again_with_the_same_rules(again):
    def block(self, x):
        return self.norm(self.linear(x)).tanh() * self.scale + x

    def forward(self, x):
        x = self.first(x)
        for _ in range(again):
            x = checkpoint(block, self, x, use_reentrant=False)
        return self.last(x)

    scale = torch.ones(3)
    parts = {"first": nn.Linear(3, 3), "linear": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "last": nn.Linear(3, 2)}
    module = Applied(forward, scale=scale, **parts)
    tape_is_dense(module, numbers("x", 3, 4, 3))


@pytest.mark.parametrize(
    "layer", [nn.Bilinear(3, 3, 2), nn.PReLU(3), nn.LSTM(3, 2, batch_first=True), nn.MultiheadAttention(3, 1)], ids=str
)
def test_what_has_no_rule_goes_by_reverse_mode_and_is_named(layer):
    def forward(self, x):
        x = self.linear(x)
        made = self.layer(*[x] * {nn.Bilinear: 2, nn.MultiheadAttention: 3}.get(type(layer), 1))
        return made[0] if isinstance(made, tuple) else made

    positions = () if isinstance(layer, nn.PReLU | nn.Bilinear) else (2,)
    module = Applied(forward, layer=layer, linear=nn.Linear(3, 3))
    if isinstance(layer, nn.MultiheadAttention):
        layer.batch_first = True
    tape_is_dense(module, numbers("x", 4, *positions, 3), covered=False)
    batch = Batch({"first": numbers("x", 4, *positions, 3)}, None, torch.arange(4))
    coverage = TapeBackend(Network(module)).coverage(batch)
    assert all(name.startswith("layer.") for name in coverage.by_reverse_mode)
    assert "by reverse mode" in coverage.sentence()


def test_positions_before_examples_are_found_out_by_the_first_micro_batch():
    """What layers are given has the positions first: the tape would take them for examples."""
    module = Applied(lambda self, x: self.layer(x.transpose(0, 1)).tanh().transpose(0, 1), layer=nn.Linear(3, 2))
    module = module.double().eval()
    network = Network(module)
    backend = TapeBackend(network)
    for part in range(2):
        batch = Batch({"first": numbers(f"x {part}", 4, 4, 3)}, None, torch.arange(4))
        assert_every_verb_is_dense(network, batch, backend.rows(batch, some_cotangents(3)), 1e-10)


def test_copies_that_are_as_many_as_the_examples_by_chance_are_found_out():
    module = Applied(lambda self, x: (x @ self.scale.expand(4, 4)).tanh(), scale=torch.ones(4)).double().eval()
    network = Network(module)
    batch = Batch({"first": numbers("x", 4, 4)}, None, torch.arange(4))
    assert_every_verb_is_dense(network, batch, TapeBackend(network).rows(batch, some_cotangents(3)), 1e-10)


def test_rows_that_live_at_once_do_not_share_memory():
    case = case_named("mlp")
    network, backend = case.network(), TapeBackend(case.network())
    first, second = (backend.rows(batch, unit_cotangents) for batch in case.batches[:2])
    made = [joined(squared(network.layout, rows)) for rows in (first, second, first)]
    assert torch.equal(made[0], made[2])
    reference = FunctionalBackend(network).rows(case.batches[0], unit_cotangents)
    assert_near(made[0], joined(squared(network.layout, reference)), case.rtol)
