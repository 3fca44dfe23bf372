"""The likelihood of a language model against torch's cross entropy, exact curvature, and its own laws."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from afterfit.algebra import Batch
from afterfit.errors import ConfigError, DataError
from afterfit.network import tokens
from afterfit.network.likelihoods import Categorical, likelihood_named
from afterfit.network.tokens import TokenCategorical
from afterfit.seeds import Seed, normals
from live_bytes import LiveBytes

LENGTH, VOCABULARY = 7, 5
MASK_BT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
LABELS_BT = torch.tensor([[3, 1, 0, 4, 2, 2, 1], [0, -100, 4, 1, -100, -100, -100], [-100, -100, 2, 2, 0, -100, 3]])


def logits(num: int = 3, *, scale: float = 2.0, vocabulary: int = VOCABULARY, length: int = LENGTH) -> Tensor:
    return normals(Seed(1), num, length * vocabulary, dtype=torch.float64) * scale


def batch(labels_BT: Tensor | None = LABELS_BT, mask_BT: Tensor | None = MASK_BT, first: int = 0) -> Batch:
    given = labels_BT if mask_BT is None else mask_BT
    assert given is not None
    inputs = {"input_ids": torch.zeros(given.shape, dtype=torch.int64)}
    if mask_BT is not None:
        inputs["attention_mask"] = mask_BT
    return Batch(inputs, labels_BT, torch.arange(first, first + len(given)))


def drawn_tokens(cotangents_BSC: Tensor, length: int = LENGTH) -> Tensor:
    """At each position the token drawn, (B, S, T), -1 where none was: its entry is the only positive one."""
    by_token = cotangents_BSC.unflatten(2, (length, -1))
    return torch.where((by_token > 0).any(dim=3), by_token.argmax(dim=3), -1)


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("is_causal", [True, False])
def test_log_density_is_torchs_cross_entropy_over_each_example(is_causal, scale):
    outputs_BC = logits(scale=scale)
    here = TokenCategorical(is_causal).on(batch(mask_BT=None))
    made_B = here.log_density(outputs_BC, LABELS_BT)
    for example, outputs_C in enumerate(outputs_BC):
        logits_TV, labels_T = outputs_C.view(LENGTH, VOCABULARY), LABELS_BT[example]
        if is_causal:
            logits_TV, labels_T = logits_TV[:-1], labels_T[1:]
        expected = -cross_entropy(logits_TV, labels_T, ignore_index=-100, reduction="sum")
        assert_close(made_B[example], expected, rtol=1e-12, atol=1e-12)


def test_gradient_is_the_derivative_of_the_log_density():
    here, leaf_BC = TokenCategorical().on(batch()), logits().requires_grad_()
    (expected_BC,) = torch.autograd.grad(here.log_density(leaf_BC, LABELS_BT).sum(), leaf_BC)
    assert_close(here.gradient(leaf_BC.detach(), LABELS_BT), expected_BC, rtol=0, atol=1e-14)


@pytest.mark.parametrize("is_causal", [True, False])
def test_what_does_not_count_contributes_exactly_nothing(is_causal):
    here = TokenCategorical(is_causal).on(batch())
    shift = int(is_causal)
    counted = [
        [
            t + shift < LENGTH and bool(MASK_BT[b, t] & MASK_BT[b, t + shift]) and int(LABELS_BT[b, t + shift]) >= 0
            for t in range(LENGTH)
        ]
        for b in range(3)
    ]
    drawn_BST = drawn_tokens(here.sample_cotangents(logits(), Seed(1), torch.arange(3), 4))
    assert torch.equal(drawn_BST >= 0, torch.tensor(counted)[:, None].expand(3, 4, LENGTH))
    other_BC = logits().unflatten(1, (LENGTH, -1))
    other_BC[~torch.tensor(counted)] = float("nan")  # whatever a network says of padding
    other_BC = other_BC.flatten(1)
    assert torch.equal(here.log_density(other_BC, LABELS_BT), here.log_density(logits(), LABELS_BT))
    for made in (
        lambda outputs_BC: here.gradient(outputs_BC, LABELS_BT),
        lambda outputs_BC: here.sample_cotangents(outputs_BC, Seed(1), torch.arange(3), 2),
    ):
        assert torch.equal(made(other_BC), made(logits()))


def test_without_labels_the_attention_mask_decides_and_without_either_every_token():
    outputs_BC, indexes = logits(), torch.arange(3)
    masked = TokenCategorical().on(batch(None))
    assert masked.counts_BT is not None
    assert masked.counts_BT.int().tolist() == [[1] * 6 + [0], [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]]
    bare = TokenCategorical().on(Batch({"x": torch.zeros(3, LENGTH)}, None, indexes))
    assert (drawn_tokens(bare.sample_cotangents(outputs_BC, Seed(1), indexes, 1)) >= 0).sum() == 3 * (LENGTH - 1)


def test_an_example_of_padding_alone_gives_zeros():
    here = TokenCategorical().on(batch(None, torch.zeros(2, LENGTH, dtype=torch.int64)))
    assert torch.count_nonzero(here.sample_cotangents(logits(2), Seed(1), torch.arange(2), 3)) == 0
    assert here.log_density(logits(2), torch.zeros(2, LENGTH, dtype=torch.int64)).tolist() == [0, 0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_mean_outer_product_is_the_hessian_of_each_token_and_nothing_between_tokens(seed):
    num_draws, here = 20_000, TokenCategorical().on(batch())
    outputs_BC = logits(scale=0.5)  # every pair of tokens is drawn some hundred times, so that means are Gaussian
    cotangents_BSC = here.sample_cotangents(outputs_BC, Seed(seed), torch.arange(3), num_draws) * num_draws**0.5
    assert here.counts_BT is not None
    for example, outputs_C in enumerate(outputs_BC):
        each_TVV = Categorical().hessian(outputs_C.view(LENGTH, VOCABULARY)) * here.counts_BT[example, :, None, None]
        products_CC = cotangents_BSC[example].T @ cotangents_BSC[example] / num_draws
        squares_CC = cotangents_BSC[example].square().T @ cotangents_BSC[example].square() / num_draws
        standard_error_CC = ((squares_CC - products_CC.square()).clamp_min(0) / num_draws).sqrt()
        # 11 025 entries with those of all seeds: 5 standard errors are passed once in 160 suites.
        error_CC = products_CC - torch.block_diag(*each_TVV)
        assert bool((error_CC.abs() <= 5 * standard_error_CC + 1e-12).all())


def test_a_draw_depends_on_neither_the_micro_batch_nor_the_run_nor_padding(monkeypatch):
    length, vocabulary = 61, 997  # neither fills a vector register
    outputs_BC, indexes_B = logits(6, vocabulary=vocabulary, length=length).float(), torch.arange(10, 16)

    def cotangents(chosen: slice, length_here: int = length) -> Tensor:
        mask_BT = torch.ones(6, length, dtype=torch.int64)
        mask_BT[1::2, 40:] = 0
        part = Batch({"attention_mask": mask_BT[chosen, :length_here]}, None, indexes_B[chosen])
        logits_BTV = outputs_BC[chosen].unflatten(1, (length, -1))[:, :length_here]
        return TokenCategorical().on(part).sample_cotangents(logits_BTV.flatten(1), Seed(4), part.indexes, 2)

    whole_BSC = cotangents(slice(0, 6))
    for step in (1, 2, 5):
        parts = [cotangents(slice(first, first + step)) for first in range(0, 6, step)]
        assert torch.equal(torch.cat(parts), whole_BSC)
    # The odd examples have 40 tokens; what follows in the whole is padding.
    short_BSC = cotangents(slice(1, None, 2), 40)
    assert torch.equal(whole_BSC[1::2].unflatten(2, (length, -1))[:, :, :40].flatten(2), short_BSC)
    for run_bytes, max_runs in ((1, 1000), (8 * vocabulary * 2 * 7, 1000), (1, 3)):
        monkeypatch.setattr(tokens, "RUN_BYTES", run_bytes)
        monkeypatch.setattr(tokens, "MAX_RUNS", max_runs)
        assert torch.equal(cotangents(slice(0, 6)), whole_BSC)


def test_draws_are_named_by_seed_example_position_and_number():
    vocabulary = 50
    flat_BC = torch.zeros(2, LENGTH * vocabulary)
    here = TokenCategorical(is_causal=False).on(batch(None, torch.ones(2, LENGTH, dtype=torch.int64)))

    def drawn(seed: int, *indexes: int, num: int = 3) -> Tensor:
        return drawn_tokens(here.sample_cotangents(flat_BC, Seed(seed), torch.tensor(indexes), num))

    first = drawn(1, 0, 1)
    assert torch.equal(first, drawn(1, 0, 1))
    assert torch.equal(first, drawn(1, 0, 1, num=8)[:, :3])  # more draws go on where fewer ended
    assert torch.equal(first.flip(0), drawn(1, 1, 0))
    assert not torch.equal(first, drawn(2, 0, 1))
    assert len(set(first.flatten().tolist())) > 20  # of 42 draws from 50 tokens, about 29 are distinct


def test_sixteen_bit_logits_draw_as_their_float32_copy_and_give_cotangents_of_their_own_dtype():
    here, indexes = TokenCategorical().on(batch()), torch.arange(3)
    outputs_BC = logits().bfloat16()
    narrow = here.sample_cotangents(outputs_BC, Seed(1), indexes, 2)
    wide = here.sample_cotangents(outputs_BC.float(), Seed(1), indexes, 2)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, wide.bfloat16())
    assert torch.equal(drawn_tokens(narrow), drawn_tokens(wide))
    assert here.log_density(outputs_BC, LABELS_BT).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_logits_size_lives_beside_the_logits_and_the_cotangents(dtype):
    num, length, vocabulary = 2, 256, 32_000
    labels_BT = torch.arange(num * length).view(num, length) * 61 % vocabulary
    here = TokenCategorical().on(Batch({"input_ids": labels_BT}, None, torch.arange(num)))
    outputs_BC = torch.randn(num, length * vocabulary, generator=torch.Generator().manual_seed(1)).to(dtype)
    for verb, buffers in (
        (lambda: here.sample_cotangents(outputs_BC, Seed(1), torch.arange(num), 1), 2),
        (lambda: here.gradient(outputs_BC, labels_BT), 2),
        (lambda: here.log_density(outputs_BC, labels_BT), 1),
    ):
        with LiveBytes(large=outputs_BC.nbytes // 4) as live:
            verb()
        assert live.most == buffers
        assert live.peak <= (buffers + 0.2) * outputs_BC.nbytes  # 128 runs, of up to about 30 bytes a number


@pytest.mark.parametrize("verb", ["root", "hessian", "num_cotangents"])
def test_exact_cotangents_are_refused_with_the_remedy(verb):
    with pytest.raises(ConfigError, match=r"no exact cotangents.*`num_samples`, 1 for example\.$"):
        getattr(likelihood_named("tokens"), verb)(3 if verb == "num_cotangents" else logits())


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (torch.tensor([[0, 1], [1, 5]]), "Token 1 of example 1 has label 5.*tokens 0 to 4"),
        (torch.tensor([[-1, 1], [1, 5]]), "Token 0 of example 0 has label -1.*label with -100"),
        (torch.tensor([0, 1]), r"shape \(2,\); give integers"),
        (torch.zeros(2, 2), "float32"),
        (torch.zeros(2, 3, dtype=torch.int64), "10 outputs are no logits of 3 tokens"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_a_sentence(targets, sentence):
    with pytest.raises(DataError, match=sentence):
        TokenCategorical().check(targets, 10)


def test_masks_and_inputs_that_do_not_tell_the_tokens_are_refused_with_a_sentence():
    with pytest.raises(DataError, match=r"The table of labels has the shape \(3, 4\); \(3, 7\) is needed"):
        TokenCategorical().on(batch(LABELS_BT[:, :4]))
    with pytest.raises(DataError, match=r"No input has the shape \(examples, tokens\), but pixels \(2, 3, 4\)"):
        TokenCategorical().on(Batch({"pixels": torch.zeros(2, 3, 4)}, None, torch.arange(2)))
    with pytest.raises(DataError, match="no logits of"):
        TokenCategorical().on(batch()).log_density(torch.zeros(3, 36), LABELS_BT)
    with pytest.raises(ConfigError, match=r"call `TokenCategorical\(\)\.on\(batch\)` first"):
        TokenCategorical().log_density(logits(), LABELS_BT)
