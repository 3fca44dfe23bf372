"""Curvature of a language model over all of its tokens: in one call, against dense matrices on a tiny Llama."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from afterfit.algebra import Batch
from afterfit.arithmetic import PLAIN
from afterfit.errors import ConfigError, NetworkError
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Categorical
from afterfit.network.loading import load_module
from afterfit.network.settings import NetworkSettings
from afterfit.network.tokens import TokenCategorical
from afterfit.rows import ggn_diagonal, ggn_times, ntk
from afterfit.rows.forward_mode import has_forward_mode
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.mixed import Passes
from afterfit.rows.tape import TapeBackend
from afterfit.seeds import Seed
from cases import TILE_WEIGHTS, assert_near, case_named, dense_jacobian, dense_outputs
from live_bytes import LiveBytes
from row_checks import by_tile, joined, numbers, squared, transposed

CASE = case_named("llama")
BATCHES = [Batch(each.inputs, None, each.indexes) for each in CASE.batches]  # the case has one label an example
BATCH = BATCHES[0]
LENGTH, VOCABULARY = 6, 11


def network(**choices) -> Network:
    return Network(CASE.module(**choices), output="tokens", tile_weights=TILE_WEIGHTS)


def cotangents(batch: Batch, num: int, seed: int = 0):
    """As `ggn_times` draws them."""
    here, place = TokenCategorical().on(batch), Seed(seed, ("cotangents",))
    return lambda outputs_BC: here.sample_cotangents(outputs_BC, place, batch.indexes, num)


def exact_ggn(batch: Batch) -> Tensor:
    """The sum over all tokens that count of J_t^T H_t J_t, (P, P), token by token."""
    rows_BTVP = dense_jacobian(network(), batch).unflatten(1, (LENGTH, VOCABULARY))
    logits_BTV = dense_outputs(network(), batch).unflatten(1, (LENGTH, VOCABULARY))
    mask_BT = batch.inputs["attention_mask"]
    total_PP = torch.zeros(CASE.num_weights, CASE.num_weights, dtype=torch.float64)
    for example in range(len(batch)):
        for position in range(LENGTH - 1):
            if mask_BT[example, position + 1]:  # padded on the right
                rows_VP = rows_BTVP[example, position]
                hessian_VV = Categorical().hessian(logits_BTV[example, position][None])[0]
                total_PP += rows_VP.T @ hessian_VV @ rows_VP
    return total_PP


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_mean_over_draws_is_the_exact_curvature_of_all_tokens(seed):
    num_draws, network_here = 20_000, network()
    made_BSC = cotangents(BATCH, num_draws, seed)(dense_outputs(network_here, BATCH)) * num_draws**0.5
    rows_BCP = dense_jacobian(network_here, BATCH)
    exact_PP = exact_ggn(BATCH)
    mean_PP, variance = torch.zeros_like(exact_PP), 0.0
    for made_SC, rows_CP in zip(made_BSC, rows_BCP, strict=True):
        rows_SP = made_SC @ rows_CP
        one_PP = rows_SP.T @ rows_SP / num_draws
        mean_PP += one_PP
        # Of a draw's product in the Frobenius norm: the mean of |r|^4, less the mean's own square.
        variance += float(rows_SP.square().sum(dim=1).square().mean() - one_PP.square().sum())
    standard_error = (variance / num_draws) ** 0.5
    error = float((mean_PP - exact_PP).norm())
    # The error's square has the mean standard_error^2; few directions hold most of it, so it varies by a factor.
    assert error <= 2 * standard_error
    assert standard_error <= 0.02 * float(exact_PP.norm())  # else the first bound would say nothing


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("num_columns", [1, 5])
def test_the_product_and_the_diagonal_are_those_of_the_drawn_rows(num_samples, num_columns):
    expected_PP = torch.zeros(CASE.num_weights, CASE.num_weights, dtype=torch.float64)
    for batch in BATCHES:
        made_BSC = cotangents(batch, num_samples, 3)(dense_outputs(network(), batch))
        rows_BSP = made_BSC @ dense_jacobian(network(), batch)
        expected_PP += torch.einsum("bsp,bsq->pq", rows_BSP, rows_BSP)
    columns_Pk = numbers("columns", CASE.num_weights, num_columns)
    settings = {"likelihood": "tokens", "num_samples": num_samples, "seed": 3}
    inputs = [batch.inputs for batch in BATCHES]
    assert_near(ggn_times(CASE.module(), inputs, columns_Pk, **settings), expected_PP @ columns_Pk, CASE.rtol)
    assert_near(ggn_diagonal(CASE.module(), inputs, **settings), expected_PP.diagonal(), CASE.rtol)


def test_labels_are_taken_from_the_inputs_and_those_of_minus_100_leave_nothing():
    labels_BT = BATCH.inputs["input_ids"].masked_fill(BATCH.inputs["attention_mask"] == 0, -100)
    settings = {"likelihood": "tokens", "num_samples": 2}
    by_mask = ggn_diagonal(CASE.module(), [BATCH.inputs], **settings)
    by_both = ggn_diagonal(CASE.module(), [{**BATCH.inputs, "labels": labels_BT}], **settings)
    assert torch.equal(by_mask, by_both)
    labels_BT[:, 1:] = -100  # the first token is not predicted by any
    none = ggn_diagonal(CASE.module(), [{**BATCH.inputs, "labels": labels_BT}], **settings)
    assert torch.count_nonzero(none) == 0


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"num_key_value_heads": 1, "intermediate_size": 6},
        {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8},
    ],
    ids=lambda config: config["model_type"],
)
def test_a_causal_language_model_as_it_is_loaded_takes_what_collators_make(config):
    special = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    module = load_module(NetworkSettings(auto="causal_lm", config=config | special, dtype="float64"))
    labels_BT = BATCH.inputs["input_ids"].masked_fill(BATCH.inputs["attention_mask"] == 0, -100)
    inputs = {**BATCH.inputs, "labels": labels_BT}
    num_draws, place = 400, Seed(0, ("cotangents",))
    made_P = ggn_diagonal(module, [inputs], likelihood="tokens", num_samples=num_draws)
    with torch.no_grad():
        logits_BC = module(**BATCH.inputs).logits.flatten(1)
    here = TokenCategorical().on(Batch(BATCH.inputs, labels_BT, BATCH.indexes))
    made_BSC = here.sample_cotangents(logits_BC, place, BATCH.indexes, num_draws)
    rows_BSP = made_BSC @ dense_jacobian(Network(module, output="tokens"), BATCH)
    assert_near(made_P, rows_BSP.square().sum(dim=(0, 1)), 1e-5)


def test_products_do_not_depend_on_the_micro_batches_nor_on_how_far_they_are_padded():
    everything = CASE.examples.batch(range(CASE.num_examples)).inputs
    longest = [int(mask.sum()) for mask in everything["attention_mask"]]
    alone = [
        {name: value[i : i + 1, : longest[i]] for name, value in everything.items()} for i in range(CASE.num_examples)
    ]
    settings = {"likelihood": "tokens", "num_samples": 2}
    whole = ggn_diagonal(CASE.module(), [everything], **settings)
    assert_near(ggn_diagonal(CASE.module(), alone, **settings), whole, CASE.rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, CASE.rtol), (torch.bfloat16, 0.05)], ids=str)
def test_the_tape_is_the_functional_backend_for_these_cotangents(dtype, rtol):
    network_here = network(dtype=dtype)
    # One set of cotangents for both: in bfloat16 two forward passes differ, and so could what is drawn from them.
    made_BSC = cotangents(BATCH, 3)(dense_outputs(network_here, BATCH))
    assert made_BSC.dtype == dtype
    assert bool(torch.isfinite(made_BSC).all())
    tape, plain = (
        backend(network_here).rows(BATCH, lambda _: made_BSC) for backend in (TapeBackend, FunctionalBackend)
    )
    columns = by_tile(network_here.layout, numbers("columns", CASE.num_weights, 5).to(tape.dtype))
    assert_near(tape.times(columns), plain.times(columns), rtol)
    weights_BSk = numbers("weights", len(BATCH), 3, 5).to(tape.dtype)
    made, expected = (joined(transposed(network_here.layout, rows, weights_BSk)) for rows in (tape, plain))
    assert_near(made, expected, rtol)
    assert_near(joined(squared(network_here.layout, tape)), joined(squared(network_here.layout, plain)), rtol)


def test_a_product_holds_two_buffers_of_the_logits_size_with_one_column_or_several():
    vocabulary, size = 32_000, (6, 40)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=4,
        pad_token_id=None,
    )
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    inputs = {"input_ids": torch.arange(size[0] * size[1]).view(size) * 127 % vocabulary}
    num_weights = sum(weight.numel() for weight in module.parameters())
    logits_bytes = size[0] * size[1] * vocabulary * 4
    for num_columns in (1, 3):
        columns_Pk = torch.ones(num_weights, num_columns)
        with LiveBytes(large=logits_bytes * 9 // 10) as live:
            ggn_times(module, [inputs], columns_Pk, likelihood="tokens", num_samples=1, memory_gb=0.01)
        # The check of a first micro-batch holds one example's logits and cotangent besides, two of the six here.
        assert live.most == 2
        assert live.peak < 2.75 * logits_bytes
    # Forward mode would hold them eight times over; what `torch.func` holds is not counted above.
    assert not has_forward_mode(Passes(Network(module, output="tokens"), PLAIN))
    assert has_forward_mode(Passes(Network(module, output="last_token"), PLAIN))


def test_exact_cotangents_are_refused_before_any_work():
    for product in (
        lambda: ggn_times(CASE.module().train(), [], torch.ones(1, 1), likelihood="tokens"),
        lambda: ggn_diagonal(CASE.module().train(), [], likelihood=TokenCategorical()),
    ):
        with pytest.raises(ConfigError, match=r"no exact cotangents.*`num_samples`"):
            product()
    with pytest.raises(ConfigError, match="set `output` to `last_token`"):
        ntk(CASE.module(), BATCH.inputs, output="tokens")


def test_outputs_by_another_rule_than_the_likelihoods_are_refused():
    with pytest.raises(ConfigError, match=r"tokens likelihood.*'last_token'; leave out `output`"):
        ggn_diagonal(CASE.module(), [], likelihood="tokens", num_samples=1, output="last_token")
    with pytest.raises(ConfigError, match=r"categorical likelihood.*'tokens'.*set `likelihood` to tokens"):
        ggn_diagonal(CASE.module(), [], output="tokens")


def test_a_network_without_logits_for_every_token_is_refused():
    case = case_named("bert")
    with pytest.raises(NetworkError, match="needs logits"):
        ggn_diagonal(case.module(), [case.batches[0].inputs], likelihood="tokens", num_samples=1)
