"""Any module as a pure function of its weights, and the networks that are refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from afterfit.errors import NetworkError
from afterfit.network.functional import Network, check_usable
from cases import NETWORK_CASES, case_named


def linear(num_inputs: int = 3, num_outputs: int = 2) -> nn.Linear:
    return nn.Linear(num_inputs, num_outputs).double().eval()


@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_outputs_are_the_modules_own_and_calling_changes_nothing(case):
    network, batch = case.network(), case.batches[0]
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    outputs_BC = network(batch.inputs)
    raw = case.module()(**batch.inputs)
    logits = raw if isinstance(raw, torch.Tensor) else raw.logits
    if logits.dim() == 3:
        last = batch.inputs["attention_mask"].sum(dim=1) - 1  # these sentences are padded on the right
        logits = logits[torch.arange(len(batch)), last]
    assert torch.equal(outputs_BC, logits)
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_replaced_weights_act_in_one_call_only(case):
    network, batch = case.network(), case.batches[0]
    trained = network(batch.inputs)
    moved = {name: 1.1 * weight for name, weight in network.weights.items()}
    elsewhere = network(batch.inputs, moved)
    assert not torch.allclose(elsewhere, trained)
    assert torch.equal(network(batch.inputs), trained)

    module = case.module()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.1)
    expected = Network(module, output=case.output)(batch.inputs)
    torch.testing.assert_close(elsewhere, expected, rtol=case.rtol, atol=case.rtol)


def test_a_replaced_weight_acts_wherever_it_is_tied():
    network = case_named("llama").network()
    tied = "model.embed_tokens.weight"
    assert not any("lm_head" in name for name in network.weights)
    inputs = case_named("llama").batches[0].inputs
    with torch.no_grad():
        doubled = network(inputs, {tied: 2 * network.weights[tied]})
        # RMSNorm nearly hides the scale of the embedding from the layers, but the output matrix shows it.
        assert float(doubled.abs().mean() / network(inputs).abs().mean()) > 1.5


def test_weights_that_are_not_named_keep_their_values():
    case = case_named("mlp")
    network, inputs = case.network(weights="3.*"), case.batches[0].inputs
    assert set(network.weights) == {"3.weight", "3.bias"}
    shifted = network(inputs, {"3.bias": network.weights["3.bias"] + 1})
    torch.testing.assert_close(shifted, network(inputs) + 1, rtol=1e-12, atol=1e-12)


def test_the_squared_norm_is_that_of_the_chosen_weights_alone():
    module = nn.Sequential(linear(), linear(2, 2)).eval()
    chosen = Network(module, "1.*")
    flat_P = nn.utils.parameters_to_vector(module[1].parameters()).detach()
    assert chosen.squared_norm == pytest.approx(float(flat_P.square().sum()), rel=1e-12)


def test_running_statistics_are_used_but_are_not_weights():
    case = case_named("conv_net")
    network, inputs = case.network(), case.batches[0].inputs
    assert not any("running" in block.name for block in network.layout.blocks)
    before = network(inputs)
    alone = network({"input": inputs["input"][:1]})  # no statistics of the batch enter
    torch.testing.assert_close(alone, before[:1], rtol=1e-12, atol=1e-12)
    network.module.get_buffer("1.running_mean").add_(0.5)
    assert not torch.allclose(network(inputs), before)


def test_inputs_come_to_the_networks_dtype_and_integers_stay():
    network = Network(linear())
    assert network({"input": torch.ones(4, 3, dtype=torch.float32)}).dtype == torch.float64
    tokens = Network(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).eval())
    assert tokens({"input": torch.tensor([[1, 2]])}).shape == (1, 2)


class Fixed(nn.Module):
    """Returns what it was told to, whatever the inputs."""

    def __init__(self, answer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.answer = answer

    def forward(self, **_):
        return self.answer


LOGITS = torch.arange(24.0).reshape(2, 4, 3)  # two sentences, four positions, three words


@pytest.mark.parametrize(
    ("mask", "positions"),
    [
        (None, [3, 3]),
        ([[1, 1, 1, 1], [1, 1, 0, 0]], [3, 1]),
        ([[0, 0, 1, 1], [0, 1, 1, 1]], [3, 3]),
        ([[0, 1, 1, 0], [1, 0, 0, 0]], [2, 0]),
    ],
    ids=["no mask", "right padding", "left padding", "both"],
)
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_last_token_is_the_last_attended_position(mask, positions, mask_dtype):
    network = Network(Fixed(SimpleNamespace(logits=LOGITS)).eval(), output="last_token")
    inputs = {"input_ids": torch.zeros(2, 4, dtype=torch.int64)}
    if mask is not None:
        inputs["attention_mask"] = torch.tensor(mask, dtype=mask_dtype)
    assert torch.equal(network(inputs), LOGITS[torch.arange(2), torch.tensor(positions)])


def test_one_number_an_example_is_one_output():
    assert Network(Fixed(torch.arange(5.0)).eval())({}).tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]


def test_outputs_with_positions_are_refused_with_the_remedy():
    with pytest.raises(NetworkError, match=r"shape \(2, 4, 3\).*`output: last_token`"):
        Network(Fixed(LOGITS).eval())({})


def test_outputs_without_logits_are_refused():
    with pytest.raises(NetworkError, match="returned dict without `logits`"):
        Network(Fixed({"a": LOGITS}).eval())({})


@pytest.mark.parametrize(
    "part", [nn.Dropout(0.1), nn.BatchNorm1d(2), nn.LayerNorm(2)], ids=lambda part: type(part).__name__
)
def test_any_part_in_train_mode_is_refused_by_name_since_dropout_is_not_always_a_module(part):
    module = nn.Sequential(linear(), part).eval()
    check_usable(module)
    part.train()
    with pytest.raises(NetworkError, match=r"train mode \('1' is\).*`network\.eval\(\)`"):
        check_usable(module)


def test_batch_norm_without_running_statistics_is_refused_since_outputs_depend_on_the_batch():
    module = nn.Sequential(linear(), nn.BatchNorm1d(2, track_running_stats=False)).eval()
    with pytest.raises(NetworkError, match="track_running_stats"):
        check_usable(module)


def test_running_statistics_that_are_not_finite_are_refused_by_name():
    module = nn.Sequential(linear(), nn.BatchNorm1d(2)).eval()
    module[1].running_var[0] = float("nan")
    with pytest.raises(NetworkError, match=r"'1\.running_var' of the network is not finite"):
        check_usable(module)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    module = nn.Sequential(linear(), linear(2, 2)).eval()
    with torch.no_grad():
        module[1].bias[1] = value
    with pytest.raises(NetworkError, match=r"'1\.bias' of the network is not finite"):
        Network(module)


def test_a_network_without_weights_is_refused():
    with pytest.raises(NetworkError, match="no weights"):
        Network(nn.Sequential(nn.Tanh()).eval())
