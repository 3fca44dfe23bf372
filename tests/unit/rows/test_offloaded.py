"""Layers that accelerate keeps elsewhere and brings when they run: the same rows as of the network in memory."""

import copy

import pytest
import torch
from accelerate import dispatch_model
from accelerate.utils import named_module_tensors

from afterfit.network.functional import Network
from afterfit.rows.tape import TapeBackend
from cases import TILE_WEIGHTS, assert_near, case_named
from row_checks import by_tile, joined, numbers, some_cotangents, squared, transposed

DEVICE_MAPS = {
    "vit": {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "cpu", "classifier": "disk"},
    "llama": {
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.norm": "disk",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DEVICE_MAPS)
def test_every_verb_is_that_of_the_network_in_memory(name, dtype, tmp_path):
    case = case_named(name)
    plain = case.module(dtype=dtype)
    module = dispatch_model(
        copy.deepcopy(plain),
        device_map=DEVICE_MAPS[name],
        main_device="cpu",
        offload_dir=str(tmp_path),
        force_hooks=True,
    )
    assert any(tensor.is_meta for _, tensor in named_module_tensors(module, recurse=True))
    here, away = (Network(made, output=case.output, tile_weights=TILE_WEIGHTS) for made in (plain, module))
    assert away.away
    layout, batch = here.layout, case.batches[0]
    first, second = (TapeBackend(network).rows(batch, some_cotangents(3)) for network in (here, away))
    rtol = 1e-10 if dtype == torch.float64 and name != "llama" else 1e-5
    # A plain network may go by forward mode or by columns, which round elsewhere: in bfloat16 by 4e-3 at each step.
    other_way = rtol if dtype == torch.float64 else 0.05
    for num_columns in (2, 40):
        columns_Pk = numbers("columns", layout.num_weights, num_columns)
        weights_BSk = numbers("weights", len(batch), 3, num_columns)
        products = [rows.times(by_tile(layout, columns_Pk)) for rows in (first, second)]
        assert_near(products[1], products[0], other_way)
        made = [joined(transposed(layout, rows, weights_BSk)) for rows in (first, second)]
        assert_near(made[1], made[0], other_way)
    assert_near(second.gram(), first.gram(), rtol)
    assert_near(joined(squared(layout, second)), joined(squared(layout, first)), rtol)
    whole = [torch.cat([part for _, part in rows.materialise(layout.tiles)], dim=-1) for rows in (first, second)]
    assert_near(whole[1], whole[0], rtol)
    assert TapeBackend(away).coverage(batch).fraction == 1
