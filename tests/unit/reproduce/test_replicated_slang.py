"""Replicas side by side make the steps that each would make alone, and those are dense natural-gradient steps."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from afterfit.algebra import State
from gradient_columns import Linear, Network, OneHidden
from replica_likelihoods import Bernoulli, Gaussian, Likelihood
from replicas import Batch, Noise, Replicas
from replicated_slang import Choices, Posterior, Slang

ROWS = (8, 7, 8)
BETA = 0.1


class Saves:
    """A cursor that keeps every save."""

    def __init__(self, saved: tuple[int, State] | None = None) -> None:
        self.saved = saved
        self.kept: dict[int, State] = {}

    def resume(self) -> tuple[int, State] | None:
        return self.saved

    def reached(self, position: int, total: int, state: State) -> None:
        self.kept[position] = {name: tensor.clone() for name, tensor in state.items()}


def _slang(network: Network, rank: int, which: Sequence[int] = (0, 1, 2), seed: int = 1) -> Slang:
    torch.manual_seed(seed)
    inputs_DNI = torch.randn(3, 10, network.num_inputs, dtype=torch.float64)
    inputs_DNI[..., -1] = 1
    targets_DN = torch.randn(3, 10, dtype=torch.float64)
    likelihood: Likelihood = Bernoulli()
    if isinstance(network, OneHidden):
        likelihood = Gaussian(torch.tensor([3.0, 1.0, 8.0], dtype=torch.float64)[list(which)], first=2.0)
    else:
        targets_DN = (targets_DN > 0).double()
    orders = [torch.randperm(10)[:size] for size in ROWS]
    replicas = Replicas(
        names=tuple(f"replica {number}" for number in which),
        inputs_DNI=inputs_DNI,
        targets_DN=targets_DN,
        version_R=torch.tensor(which),
        rows=tuple(orders[number] for number in which),
        batch_size=3,
    )
    prior_P = torch.where(network.is_bias(), 1e-3, 0.7).double()
    choices = Choices(rank=rank, num_draws=2, epochs=4, mean_step=0.05, precision_step=BETA)
    return Slang(network, likelihood, replicas, prior_P.expand(len(which), -1), choices)


def _one_epoch(slang: Slang) -> Posterior:
    return replace(slang, choices=replace(slang.choices, epochs=1)).fit(Saves())


class Dense:
    """What one step starts from and makes, of one replica, with P x P matrices."""

    def __init__(self, slang: Slang, before: Posterior, replica: int, batch: Batch, noise_PS: Tensor) -> None:
        self.factor_PL, self.diagonal_P = before.factor_RPL[replica], before.diagonal_RP[replica]
        self.mean_P, self.prior_P = before.mean_RP[replica], slang.prior_RP[replica]
        root_P = self.diagonal_P.rsqrt()
        white_PL = self.factor_PL * root_P[:, None]
        values, vectors = torch.linalg.eigh(torch.eye(len(root_P)).double() + white_PL @ white_PL.mT)
        self.draws_PS = self.mean_P[:, None] + root_P[:, None] * (vectors * values.rsqrt() @ vectors.mT @ noise_PS)
        self.gradients_PX = self._gradients(slang, replica, batch)
        count = batch.weights_RM[replica].sum() * noise_PS.shape[1]
        self.scale = len(slang.replicas.rows[replica]) / count

    def _gradients(self, slang: Slang, replica: int, batch: Batch) -> Tensor:
        used = batch.weights_RM[replica] > 0
        inputs_MI, targets_M = batch.inputs_RMI[replica][used], batch.targets_RM[replica][used]

        def losses(weights_P: Tensor) -> Tensor:
            passed = slang.network.passed(weights_P[None, :, None], inputs_MI[None])
            outputs_M = passed.outputs_RSM[0, 0]
            if isinstance(slang.likelihood, Gaussian):
                return slang.likelihood.precision_R[replica] * (outputs_M - targets_M).square() / 2
            return torch.nn.functional.binary_cross_entropy_with_logits(outputs_M, targets_M, reduction="none")

        rows = [torch.autograd.functional.jacobian(losses, weights_P) for weights_P in self.draws_PS.mT]
        return torch.cat(rows).mT

    def precision(self, rank: int) -> tuple[Tensor, Tensor]:
        """U' U'^T and D'."""
        gathered = (1 - BETA) * self.factor_PL @ self.factor_PL.mT
        gathered = gathered + BETA * self.scale * self.gradients_PX @ self.gradients_PX.mT
        values, vectors = torch.linalg.eigh(gathered)
        kept = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].mT
        diagonal_P = (1 - BETA) * self.diagonal_P + BETA * self.prior_P + (gathered - kept).diagonal()
        return kept, diagonal_P


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("network", "rank"), [(OneHidden(3, 4), 1), (OneHidden(3, 4), 3), (Linear(5), 2)], ids=str)
def test_a_step_of_each_replica_is_the_dense_natural_gradient_step(network: Network, rank: int, seed: int) -> None:
    slang = _slang(network, rank, seed=seed)
    before = _one_epoch(slang)
    batch = slang.replicas.epoch(1).batch(2)
    noise_RPS = Noise(slang.replicas, 1, network.num_weights, 2).step(2)

    after = slang.step(before, batch, noise_RPS, slang.steps(6), part=1.0)

    for replica in range(3):
        dense = Dense(slang, before, replica, batch, noise_RPS[replica])
        low_rank_PP, diagonal_P = dense.precision(rank)
        momentum_P = 0.9 * before.momentum_RP[replica] + 0.1 * dense.scale * dense.gradients_PX.sum(dim=1)
        downhill_P = momentum_P / (1 - 0.9**6) + dense.prior_P * dense.mean_P
        mean_P = dense.mean_P - 0.05 * torch.linalg.solve(low_rank_PP + diagonal_P.diag(), downhill_P)
        factor_PL = after.factor_RPL[replica]
        scale = float(low_rank_PP.abs().max())  # rounding of eigenvectors is relative to the whole matrix
        torch.testing.assert_close(factor_PL @ factor_PL.mT, low_rank_PP, rtol=0, atol=1e-12 * scale)
        torch.testing.assert_close(after.diagonal_RP[replica], diagonal_P, rtol=0, atol=1e-12 * scale)
        torch.testing.assert_close(after.mean_RP[replica], mean_P, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("network", "rank"), [(OneHidden(3, 4), 1), (Linear(5), 2)], ids=str)
def test_truncation_keeps_the_diagonal_of_the_precision(network: Network, rank: int) -> None:
    slang = _slang(network, rank)
    before = _one_epoch(slang)
    batch, noise_RPS = slang.replicas.epoch(1).batch(0), Noise(slang.replicas, 1, network.num_weights, 2).step(0)

    after = slang.step(before, batch, noise_RPS, slang.steps(4), part=1.0)

    for replica in range(3):
        dense = Dense(slang, before, replica, batch, noise_RPS[replica])
        old_P = before.factor_RPL[replica].square().sum(dim=1) + dense.diagonal_P
        new_P = dense.scale * dense.gradients_PX.square().sum(dim=1) + dense.prior_P
        made_P = after.factor_RPL[replica].square().sum(dim=1) + after.diagonal_RP[replica]
        torch.testing.assert_close(made_P, (1 - BETA) * old_P + BETA * new_P, rtol=1e-13, atol=0)


@pytest.mark.parametrize("network", [OneHidden(3, 4), Linear(5)], ids=str)
def test_replicas_together_are_what_each_is_alone(network: Network) -> None:
    together = _slang(network, 1).fit(Saves())

    for number in range(3):
        alone = _slang(network, 1, [number]).fit(Saves())
        torch.testing.assert_close(alone.mean_RP[0], together.mean_RP[number], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.diagonal_RP[0], together.diagonal_RP[number], rtol=1e-9, atol=1e-9)


def test_a_fit_that_goes_on_from_a_save_ends_in_the_same_bits() -> None:
    saves = Saves()
    whole = _slang(OneHidden(3, 4), 1).fit(saves)

    resumed = _slang(OneHidden(3, 4), 1).fit(Saves((2, saves.kept[2])))

    assert list(saves.kept) == [1, 2, 3, 4]
    for name, tensor in whole.state().items():
        assert torch.equal(resumed.state()[name], tensor), name


def test_an_epoch_takes_every_example_once_in_batches_that_differ_by_one() -> None:
    slang = _slang(Linear(5), 1)
    replicas, epoch = slang.replicas, slang.replicas.epoch(3)

    for number, rows in enumerate(replicas.rows):
        used = epoch.weights_KRM[:, number] > 0
        assert sorted(epoch.index_KRM[:, number][used].tolist()) == sorted(rows.tolist())
        sizes = used.sum(dim=1)
        assert int(sizes.max() - sizes.min()) <= 1
        scales = torch.stack([epoch.batch(step).scale_R[number] for step in range(replicas.steps_per_epoch)])
        torch.testing.assert_close(scales * sizes, torch.full_like(scales, len(rows)))


def test_no_two_epochs_steps_or_replicas_share_noise_or_order() -> None:
    replicas = _slang(Linear(5), 1).replicas
    drawn = [Noise(replicas, epoch, 5, 2).step(step) for epoch in (0, 1) for step in (0, 1, 16)]
    seen = {tuple(noise.flatten().tolist()) for noises in drawn for noise in noises}
    orders = {tuple(replicas.epoch(epoch).index_KRM[:, 0].flatten().tolist()) for epoch in range(4)}

    assert len(seen) == 6 * 3
    assert len(orders) == 4


def test_noise_precision_rises_to_its_value_at_half_of_the_steps() -> None:
    likelihood = Gaussian(torch.tensor([8.0, 1.0]), first=2.0)
    outputs, targets = torch.ones(2, 1, 1), torch.zeros(2, 1)

    slopes = [likelihood.slopes(outputs, targets, part).flatten().tolist() for part in (0.0, 0.25, 0.5, 0.9)]

    assert slopes == [[2, 1], [4, 1], [8, 1], [8, 1]]
