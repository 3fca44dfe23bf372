"""The rules of the tape, layer by layer in every setting, and what has none."""

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
from afterfit.rows.tape import TapeBackend
from row_checks import (
    assert_every_verb_is_dense,
    numbers,
    some_cotangents,
)


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
    assert not any(backend.wrong.values()), backend.wrong  # else reverse mode would stand in for a wrong rule


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


CHANCE = {
    "positions first": (lambda self, x: self.layer(x.transpose(0, 1)).tanh().transpose(0, 1), 3),
    "as many copies": (lambda self, x: (x @ self.scale.expand(4, 4)).tanh(), 4),
    "a constant": (lambda self, x: x + self.layer(self.constant.to(x)), 3),
}


@pytest.mark.parametrize("name", CHANCE)
def test_what_has_as_many_rows_as_there_are_examples_by_chance_is_found_out(name):
    """Each kind of micro-batch is checked: 4 examples are as many as the positions, and 2 divide them."""
    forward, width = CHANCE[name]
    module = Applied(forward, layer=nn.Linear(3, 3), scale=torch.ones(4)).double().eval()
    module.register_buffer("constant", numbers("constant", 4, 3))
    network = Network(module)
    backend = TapeBackend(network)
    for num_examples in (3, 4, 2, 1):
        shape = (num_examples, 4, width)
        batch = Batch({"first": numbers(f"x {num_examples}", *shape)}, None, torch.arange(num_examples))
        assert_every_verb_is_dense(network, batch, backend.rows(batch, some_cotangents(3)), 1e-10)


def test_examples_that_the_data_send_to_different_layers_go_by_reverse_mode():
    def forward(self, x):
        tokens = x.flatten(0, 1)
        chosen = tokens[:, 0] > 0
        parts = tokens.new_zeros(len(tokens), 2)
        parts[chosen] = self.one(self.first(tokens)[chosen])
        parts[~chosen] = self.other(self.first(tokens)[~chosen])
        return parts.view(len(x), -1)

    parts = {"first": nn.Linear(3, 3), "one": nn.Linear(3, 2), "other": nn.Linear(3, 2)}
    module = Applied(forward, **parts).double().eval()
    network = Network(module)
    backend = TapeBackend(network)
    for number in range(6):
        batch = Batch({"first": numbers(f"x {number}", 2, 5, 3)}, None, torch.arange(2))
        rows = backend.rows(batch, some_cotangents(3))
        assert {"one.weight", "other.weight"} <= set(backend.coverage(batch).by_reverse_mode)
        assert_every_verb_is_dense(network, batch, rows, 1e-10)


def assigned(self, x):
    whole = torch.zeros(len(x), 5, dtype=x.dtype)
    whole[:, 0] = self.weight[0, 0]
    whole[:, 1:] = x
    return whole * 2


def cut(self, x):
    weight = self.weight.clone()
    weight[0] = 0
    return F.linear(x, weight)


def twice(self, x):
    where = self.where(torch.arange(4))[:, 0]
    return (x + where).tanh() + where


ODD = {
    "changed in place": lambda self, x: F.linear(x, self.weight.clone().mul_(3)),
    "a part overwritten": cut,
    "assigned": assigned,
    "one number added": lambda self, x: torch.addmm(self.weight[0, :1], x, self.other),
    "the same positions twice": twice,
    "padding without data": lambda self, x: x + F.embedding(torch.arange(4), self.table, padding_idx=0)[:, 0],
    "no turn": lambda self, x: F.linear(x, self.weight.permute(0, 1)),
    "a turn": lambda self, x: F.linear(x, self.weight.permute(1, 0)) + F.linear(x, self.weight.T) + x @ self.weight.mT,
    "named": lambda self, x: torch.matmul(x, other=self.weight) + torch.mm(x, mat2=self.weight),
    "without gradient": lambda self, x: x * self.weight[0] / (1 + (x * self.weight[1]).detach()),
    "compared": lambda self, x: torch.where(x > self.weight[0], x, 0.5 * x) * self.weight[1],
    "repeated": lambda self, x: x * self.weight[0].repeat(len(x), 1) + self.weight[0, :2].repeat(len(x), 2),
}


@pytest.mark.parametrize("num_examples", [1, 3, 4])
@pytest.mark.parametrize("name", ODD)
def test_odd_uses_are_right_with_a_rule_or_without(name, num_examples):
    parts = {"weight": torch.ones(4, 4), "other": torch.ones(4, 4), "table": torch.ones(4, 2)}
    module = Applied(ODD[name], where=nn.Embedding(4, 4), **parts).double().eval()
    if name == "the same positions twice":
        module.where = nn.Embedding(4, 1).double().eval()
    with torch.no_grad():
        for block, weight in module.named_parameters():
            weight.copy_(numbers(block, *weight.shape))
    network = Network(module, tile_weights=17)
    batch = Batch({"first": numbers("x", num_examples, 4)}, None, torch.arange(num_examples))
    assert_every_verb_is_dense(network, batch, TapeBackend(network).rows(batch, some_cotangents(3)), 1e-10)
