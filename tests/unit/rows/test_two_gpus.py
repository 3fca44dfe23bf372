"""A network whose layers lie on two GPUs: the same rows as of the network on one."""

import copy

import pytest
import torch
from accelerate import dispatch_model

from afterfit.algebra import Batch
from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.network.functional import Network
from afterfit.rows.tape import TapeBackend
from cases import TILE_WEIGHTS, assert_near, case_named
from row_checks import by_tile, joined, numbers, some_cotangents, squared, transposed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed, and this machine has fewer"),
]

DEVICE_MAPS = {
    "vit": {"vit.embeddings": 0, "vit.layers": 1, "vit.layernorm": 1, "classifier": 0},
    "llama": {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers": 1, "model.norm": 1, "lm_head": 0},
}
# Other devices sum in another order; llama's norm rounds to float32, and bfloat16 loses 4e-3 at each step.
ARITHMETICS = [(torch.float64, PLAIN, 1e-5), (torch.float32, Arithmetic(autocast="bfloat16"), 0.1)]


@pytest.mark.parametrize(("dtype", "arithmetic", "rtol"), ARITHMETICS, ids=["float64", "autocast"])
@pytest.mark.parametrize("memory_gb", [2.0, 1e-6], ids=["kept", "made again"])
@pytest.mark.parametrize("name", DEVICE_MAPS)
def test_every_verb_is_that_of_the_network_on_one_device(name, memory_gb, dtype, arithmetic, rtol):
    case = case_named(name)
    plain = case.module(dtype=dtype)
    module = dispatch_model(copy.deepcopy(plain), device_map=DEVICE_MAPS[name], force_hooks=True)
    places = {weight.device.index for weight in module.parameters()}
    assert places == {0, 1}
    here, spread = (Network(made, output=case.output, tile_weights=TILE_WEIGHTS) for made in (plain, module))
    layout = here.layout
    given = case.batches[0]
    on_first = Batch({key: value.to("cuda:0") for key, value in given.inputs.items()}, None, given.indexes)
    backend = TapeBackend(spread, memory_gb, arithmetic)
    first = TapeBackend(here, memory_gb).rows(given, some_cotangents(3))
    second = backend.rows(on_first, some_cotangents(3))
    for num_columns in (2, 40):
        columns_Pk = numbers("columns", layout.num_weights, num_columns).to(dtype)
        weights_BSk = numbers("weights", len(given), 3, num_columns).to(dtype)
        products = [rows.times(by_tile(layout, columns_Pk)).cpu() for rows in (first, second)]
        assert_near(products[1], products[0], rtol)
        made = [joined(transposed(layout, rows, weights_BSk)) for rows in (first, second)]
        assert_near(made[1], made[0], rtol)
    assert_near(second.gram().cpu(), first.gram(), rtol)
    assert_near(joined(squared(layout, second)), joined(squared(layout, first)), rtol)
    whole = [torch.cat([part.cpu() for _, part in rows.materialise(layout.tiles)], dim=-1) for rows in (first, second)]
    assert_near(whole[1], whole[0], rtol)
    assert backend.coverage(on_first).fraction == 1
    assert not any(backend.wrong.values()), backend.wrong
