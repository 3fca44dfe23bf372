"""Factors of rows against the rows themselves."""

import pytest
import torch

from afterfit.network.functional import Network
from afterfit.rows.factored import Outer, factors_of, joined
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.tape import TapeBackend
from cases import NETWORK_CASES, NetworkCase, dense_jacobian


def slopes(outputs_BC: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 2, outputs_BC.numel(), dtype=outputs_BC.dtype).view_as(outputs_BC)[:, None]


@pytest.mark.parametrize("gap", [0, 1], ids=["dense", "with gaps"])
@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_every_verb_of_joined_factors_is_that_of_dense_rows(case: NetworkCase, gap: int):
    network = case.network()
    rows_of = TapeBackend(network, 0.1)
    batches = case.batches[:3]
    half = len(network.layout.tiles) // 2
    halves = [network.layout.tiles[:half], network.layout.tiles[half:]]  # blocks are cut between them
    made = [rows_of.rows(batch, slopes) for batch in batches]
    runs = [[factors_of(rows, tiles) for tiles in halves] for rows in made]
    dense_XP = torch.cat(
        [torch.einsum("bc,bcp->bp", slopes(network(b.inputs))[:, 0], dense_jacobian(network, b)) for b in batches]
    )
    columns_Pk = torch.linspace(-1, 1, 3 * network.layout.num_weights, dtype=torch.float64).view(-1, 3)
    weights_Xk = torch.linspace(1, -2, 2 * len(dense_XP), dtype=torch.float64).view(-1, 2)
    gram, times = torch.zeros(len(dense_XP), len(dense_XP)).double(), torch.zeros(len(dense_XP), 3).double()
    back, squares = torch.zeros(len(columns_Pk), 2).double(), torch.zeros(len(columns_Pk)).double()
    offsets = {tile.name: tile.offset for tile in network.layout.tiles}
    for run, tiles in zip(zip(*runs, strict=True), halves, strict=True):
        for stretch in joined(run, tiles):
            gram += sum(made.gram() for made in stretch.grams)
            for piece, made in stretch.parts:
                first = offsets[piece.tile]
                whole = slice(first + piece.place.start, first + piece.place.stop)
                times += made.times(columns_Pk[whole].T.contiguous())
                num_weights = piece.place.stop - piece.place.start
                into_kp = torch.ones(2, num_weights + gap).double()[:, :num_weights]
                made.transpose_times(weights_Xk.T, into_kp)
                back[whole] = into_kp.T - 1
                squares[whole] = made.squares()
    pairs = {
        "gram": (gram, dense_XP @ dense_XP.mT),
        "times": (times, dense_XP @ columns_Pk),
        "transpose_times": (back, dense_XP.mT @ weights_Xk),
        "squares": (squares, dense_XP.square().sum(dim=0)),
    }
    tolerance = case.eager_rtol if "llama" in case.name else case.rtol
    for name, (made, expected) in pairs.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(made, expected, rtol=0.0, atol=tolerance * scale, msg=f"{case.name}: {name}")


def test_a_linear_layer_of_one_position_is_sent_as_two_factors():
    network = Network(torch.nn.Linear(30, 20).eval())
    rows = TapeBackend(network).rows(_batch(4, 30), slopes)
    made = factors_of(rows, network.layout.tiles)
    assert sum(part.numel() for part in made.values()) == 4 * (30 + 20 + 20)
    weight, bias = joined([made], network.layout.tiles)
    assert isinstance(weight.grams[0], Outer)
    assert not isinstance(bias.grams[0], Outer)


def test_factors_of_some_runs_and_rows_of_others_are_joined_as_rows():
    network = Network(torch.nn.Linear(30, 20).eval())
    factored = factors_of(TapeBackend(network).rows(_batch(4, 30), slopes), network.layout.tiles)
    ((name, columns_B1P),) = FunctionalBackend(network).rows(_batch(4, 30), slopes).materialise(network.layout.tiles)
    weight, bias = columns_B1P[:, 0].split([600, 20], dim=1)
    explicit = {f"weight/{name}": weight, f"bias/{name}": bias}
    mixed, whole = (
        joined(list(map(dict, runs)), network.layout.tiles)[0] for runs in ([factored, explicit], [explicit, explicit])
    )
    torch.testing.assert_close(mixed.grams[0].gram(), whole.grams[0].gram())


def _batch(num_examples: int, num_inputs: int):
    from afterfit.algebra import Batch

    inputs = torch.randn(num_examples, num_inputs, generator=torch.Generator().manual_seed(0))
    return Batch({"input": inputs}, None, torch.arange(num_examples))
