"""Rows from passes in mixed precision: near those of the network in float64, and never lost below float16's range."""

import pytest
import torch

import afterfit
from afterfit.algebra import Batch
from afterfit.arithmetic import Arithmetic
from afterfit.errors import ConfigError, NumericalError
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Categorical
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.resolve import request_from_objects
from afterfit.rows import ggn_times, row_backend
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.protocol import unit_cotangents
from afterfit.rows.tape import TapeBackend
from cases import assert_near, case_named, dense_ggn, dense_jacobian
from row_checks import assert_every_verb_is_of, by_tile, joined, numbers, some_cotangents, transposed

CASES = [case_named(name) for name in ("mlp", "conv_net", "vit", "bert", "llama")]
# Passes lose a factor of 25 of the unit roundoff here at most: 4e-3 of bfloat16, 5e-4 of float16.
TOLERANCES = {"bfloat16": 0.1, "float16": 0.0125}

on_both_backends = pytest.mark.parametrize("backend", [TapeBackend, FunctionalBackend])
in_both_types = pytest.mark.parametrize("autocast", TOLERANCES)


@pytest.mark.parametrize("case", CASES, ids=str)
@in_both_types
@on_both_backends
def test_every_verb_is_near_the_dense_jacobian_in_float64(case, autocast, backend):
    network, batch, rtol = case.network(dtype=torch.float32), case.batches[0], TOLERANCES[autocast]
    made = backend(network, arithmetic=Arithmetic(autocast=autocast))
    rows = made.rows(batch, some_cotangents(3))
    layout = network.layout
    dense_BSP = rows.cotangents_BSC.double() @ dense_jacobian(case.network(), batch)
    assert_every_verb_is_of(dense_BSP, layout, rows, rtol)
    whole_BSP = torch.cat([columns for _, columns in rows.materialise(layout.tiles)], dim=-1)
    assert rows.gram().dtype == torch.float64
    assert whole_BSP.dtype == rows.outputs_BC.dtype == torch.float32
    if backend is TapeBackend:
        assert made.coverage(batch).fraction == 1
        assert not any(made.wrong.values()), made.wrong


def test_the_passes_are_in_the_type_that_was_asked_for():
    case = case_named("mlp")
    seen = []
    module = case.module(dtype=torch.float32)
    first = next(part for part in module.modules() if isinstance(part, torch.nn.Linear))
    first.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    backend = row_backend(Network(module), 2.0, Arithmetic(autocast="bfloat16"))
    backend.rows(case.batches[0], unit_cotangents).gram()
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("case", CASES[:4], ids=str)
@on_both_backends
@pytest.mark.parametrize("smallest", [1e-9, 1e-30])
def test_cotangents_below_the_range_of_float16_lose_nothing(case, backend, smallest):
    network, batch, layout = case.network(dtype=torch.float32), case.batches[0], case.network().layout
    sizes = torch.tensor([1.0, smallest, smallest**0.5, 0.0]).view(4, 1, 1)

    def cotangents(outputs_BC: torch.Tensor) -> torch.Tensor:
        return some_cotangents(3)(outputs_BC) * sizes

    rows = backend(network, arithmetic=Arithmetic(autocast="float16")).rows(batch, cotangents)
    dense_BSP = rows.cotangents_BSC.double() @ dense_jacobian(case.network(), batch)
    columns_Pk = numbers("columns", layout.num_weights, 40)
    product_BSk = rows.times(by_tile(layout, columns_Pk.float()))
    for b in range(3):  # each on its own scale
        assert_near(product_BSk[b], dense_BSP[b] @ columns_Pk, TOLERANCES["float16"])
    assert torch.count_nonzero(product_BSk[3]) == 0
    for num_columns in (1, 40):  # a pass for each column, and one for each cotangent
        weights_BSk = smallest * numbers("weights", 4, 3, num_columns)
        expected_Pk = torch.einsum("bsp,bsk->pk", dense_BSP, weights_BSk)
        assert_near(joined(transposed(layout, rows, weights_BSk)), expected_Pk, TOLERANCES["float16"])


@on_both_backends
def test_gradients_above_the_range_of_float16_are_refused(backend):
    torch.manual_seed(0)
    first, norm = torch.nn.Linear(4, 6, bias=False), torch.nn.BatchNorm1d(6, eps=1e-12)
    module = torch.nn.Sequential(first, norm, torch.nn.Linear(6, 3)).eval()
    norm.running_var = torch.full((6,), 1e-10)  # outputs of the first layer are small, and gradients there large
    network = Network(module)
    batch = Batch({"input": 1e-3 * numbers("x", 3, 4).float()}, None, torch.arange(3))
    columns = by_tile(network.layout, numbers("columns", network.layout.num_weights, 40).float())
    with pytest.raises(NumericalError, match=r"too large for float16; set `rows\.autocast` to bfloat16"):
        backend(network, arithmetic=Arithmetic(autocast="float16")).rows(batch, unit_cotangents).times(columns)
    made = backend(network, arithmetic=Arithmetic(autocast="bfloat16")).rows(batch, unit_cotangents).times(columns)
    assert torch.isfinite(made).all()


def test_cotangents_come_from_outputs_in_float32():
    case = case_named("mlp")
    seen = []

    def root(outputs_BC: torch.Tensor) -> torch.Tensor:
        seen.append(outputs_BC.dtype)
        return Categorical().root(outputs_BC)

    backend = row_backend(case.network(dtype=torch.float32), 2.0, Arithmetic(autocast="bfloat16"))
    assert backend.rows(case.batches[0], root).outputs_BC.dtype == torch.float32
    assert seen == [torch.float32]


def test_a_rule_that_is_wrong_is_found_in_mixed_precision_too():
    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x).roll(1, dims=0).roll(1, dims=0) + x[:1].sum() * self.one(x.flip(0))

    network = Network(Mixing().eval())
    batch = Batch({"x": numbers("x", 3, 4).float()}, None, torch.arange(3))
    backend = TapeBackend(network, arithmetic=Arithmetic(autocast="bfloat16"))
    backend.rows(batch, unit_cotangents)
    assert any(backend.wrong.values())


def test_the_public_products_take_it():
    case = case_named("conv_net")
    inputs = [batch.inputs for batch in case.batches]
    columns_Pk = numbers("columns", case.num_weights, 3)
    made = ggn_times(case.module(dtype=torch.float32), inputs, columns_Pk.float(), autocast="float16")
    assert_near(made, dense_ggn(case) @ columns_Pk, 2 * TOLERANCES["float16"])  # rows stand in it twice
    with pytest.raises(ConfigError, match="autocast: input should be 'bfloat16' or 'float16'"):
        ggn_times(case.module(), inputs, columns_Pk, autocast="float8")


def test_a_network_in_float64_is_refused():
    with pytest.raises(ConfigError, match=r"remove `rows\.autocast`"):
        row_backend(case_named("mlp").network(), 2.0, Arithmetic(autocast="bfloat16"))


def test_keys_change_only_where_it_is_set():
    case = case_named("mlp")
    items = [{"input": value.float(), "label": 0} for value in case.examples.inputs["input"]]
    method = afterfit.Ella(num_landmarks=20, num_features=5, prior_precision=1.0, temperature=1.0)

    def keys(arithmetic: Arithmetic) -> dict[str, str]:
        module = case.module(dtype=torch.float32)
        request = request_from_objects(module, {"train": items}, method, case.likelihood, arithmetic=arithmetic)
        plan = posterior_plan(request)
        assert all(stage.context.get("rows", {}) == arithmetic.changed for stage in plan if stage.data and stage.inputs)
        assert arithmetic.changed or not any("rows" in stage.context for stage in plan)
        return {stage.name: stage.key for stage in plan}

    plain, mixed, other = (keys(Arithmetic(autocast=autocast)) for autocast in (None, "bfloat16", "float16"))
    assert plain["point_estimate"] == mixed["point_estimate"] == other["point_estimate"]
    for name in ("gram", "basis", "curvature", "posterior"):
        assert len({plain[name], mixed[name], other[name]}) == 3


def test_a_fit_is_near_the_plain_one_and_loads_with_its_arithmetic(tmp_path):
    case = case_named("vit")
    examples = case.examples
    items = [
        {"pixel_values": examples.inputs["pixel_values"][i].float(), "label": examples.labels[i]}
        for i in range(case.num_examples)
    ]
    method = afterfit.Ella(num_landmarks=27, num_features=18, prior_precision=1.0, temperature=1.0)
    module, batch = case.module(dtype=torch.float32), case.fresh.batch(range(5))
    plain, mixed = (
        afterfit.fit(module, items, method=method, store=str(tmp_path / str(autocast)), autocast=autocast)
        for autocast in (None, "bfloat16")
    )
    expected, made = (posterior.predict(batch) for posterior in (plain, mixed))
    assert_near(made.mean, expected.mean, 0.05)
    assert_near(made.covariance, expected.covariance, 0.05)
    assert not torch.equal(made.mean, expected.mean)
    again = afterfit.load(str(tmp_path / "bfloat16"), network=module)
    assert torch.equal(again.predict(batch).covariance, made.covariance)
