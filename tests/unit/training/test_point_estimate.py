"""Training by steps: bits that survive a stop, and that do not depend on who runs the slices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from afterfit.algebra import Batch, State, Stop, add
from afterfit.errors import ConfigError, DataError, NumericalError
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from afterfit.network.loading import put_state
from afterfit.network.noise import named_noise
from afterfit.seeds import Seed, normals
from afterfit.training.point_estimate import PointEstimate, Training, trained_state
from afterfit.training.schedule import Schedule
from afterfit.training.settings import TrainingSettings


class Net(nn.Module):
    """Convolution, batch norm, dropout: all that behaves differently in train mode."""

    def __init__(self, num_outputs: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 64, num_outputs)

    def forward(self, pixel_values: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.conv(pixel_values)))
        return self.head(self.drop(maps.flatten(1)))


@dataclass(frozen=True)
class Pixels:
    pixels: Tensor
    labels: Tensor

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    def batch(self, indexes: Sequence[int]) -> Batch:
        chosen = torch.tensor(list(indexes))
        return Batch({"pixel_values": self.pixels[chosen]}, self.labels[chosen], chosen)

    def targets(self) -> Tensor:
        return self.labels


@dataclass(frozen=True)
class Bench:
    """As much of a workbench as training touches."""

    network: Network
    examples: Pixels
    num_outputs: int = 10

    def data(self, role: str) -> Pixels:
        assert role == "train"
        return self.examples


@cache
def digits(num: int) -> Pixels:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Pixels(torch.from_numpy(pixels[:num] / 16).float().reshape(-1, 1, 8, 8), torch.from_numpy(labels[:num]))


def fresh_network(num_outputs: int = 10) -> Network:
    with named_noise(Seed(5)):
        return Network(Net(num_outputs).eval().requires_grad_(False))


def bind(num: int = 50, likelihood: Likelihood | None = None, targets: Tensor | None = None, **fields) -> Training:
    settings = TrainingSettings(**{"epochs": 2, "batch_size": 16, "num_slices": 4, "seed": 3, **fields})
    examples = digits(num) if targets is None else Pixels(digits(num).pixels, targets)
    num_outputs = 10 if targets is None else (1 if targets.dim() == 1 else targets.shape[1])
    bench = Bench(fresh_network(num_outputs), examples, num_outputs)
    return PointEstimate(settings, likelihood or Categorical()).on(bench)  # type: ignore[arg-type]


@dataclass
class Gang:
    """One worker's view where `others` holds what the other workers give for this step."""

    num_slices: int
    mine: Sequence[int]
    others: dict[int, State] = field(default_factory=dict)

    def sum(self, parts: Sequence[State]) -> State:
        given = {**self.others, **dict(zip(self.mine, parts, strict=True))}
        total = given[0]
        for number in range(1, self.num_slices):
            total = add(total, given[number])
        return total

    def gather(self, parts: Sequence[State]) -> list[State]:
        return list(parts)


def alone(training: Training) -> Gang:
    return Gang(training.num_slices, range(training.num_slices))


def run(training: Training, steps: int | None = None) -> tuple[State, list[dict[str, float]]]:
    state, figures = training.init(), []
    for number in range(training.num_steps if steps is None else steps):
        state, progress = training.step(state, number, alone(training))
        figures.append(dict(progress.figures))
    return state, figures


def copied(state: State) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def same_bits(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_resuming_after_any_step_in_a_new_process_gives_the_same_bits():
    straight = bind()
    state, saved = straight.init(), []
    for number in range(straight.num_steps):
        saved.append(copied(state))
        state, _ = straight.step(state, number, alone(straight))
    for start, before in enumerate(saved):
        resumed = bind()
        torch.manual_seed(start)  # what a new process has drawn before must not matter
        again: State = before
        for number in range(start, resumed.num_steps):
            again, progress = resumed.step(again, number, alone(resumed))
        assert same_bits(again, state), f"resumed at step {start}"
    assert progress.stop is Stop.FINISHED


@pytest.mark.parametrize("num_workers", [2, 4])
def test_the_bits_do_not_depend_on_how_many_workers_share_the_slices(num_workers):
    expected, _ = run(bind(), steps=4)
    workers = [bind() for _ in range(num_workers)]
    states: list[State] = [worker.init() for worker in workers]
    each = 4 // num_workers
    for number in range(4):
        shares = [range(rank * each, (rank + 1) * each) for rank in range(num_workers)]
        parts: dict[int, State] = {}
        for worker, state, share in zip(workers, states, shares, strict=True):
            recorder = Recorder(4, share)
            with pytest.raises(RecordedError):
                worker.step(copied(state), number, recorder)
            parts |= recorder.given
        for rank, worker in enumerate(workers):
            others = {which: part for which, part in parts.items() if which not in shares[rank]}
            states[rank], _ = worker.step(states[rank], number, Gang(4, shares[rank], others))
    for state in states:
        assert same_bits(state, expected)


class RecordedError(Exception):
    pass


@dataclass
class Recorder(Gang):
    """Keeps what a worker gives, then stops it."""

    given: dict[int, State] = field(default_factory=dict)

    def sum(self, parts: Sequence[State]) -> State:
        self.given = dict(zip(self.mine, parts, strict=True))
        raise RecordedError


def test_the_loss_falls_on_real_digits_and_the_trained_weights_go_back_into_a_network():
    training = bind(num=300, epochs=6, batch_size=32, num_slices=1, learning_rate=1e-2)
    state, figures = run(training)
    assert figures[0]["loss"] > 1.8  # ten classes, untrained: log 10 = 2.3
    assert figures[-1]["loss"] < 0.4
    assert figures[-1]["accuracy"] > 0.85
    artifact = Kept(training, state)
    module = put_state(fresh_network().module, trained_state(artifact))
    moved = dict(module.named_buffers())
    assert int(moved["norm.num_batches_tracked"]) == training.num_steps
    assert not torch.equal(moved["norm.running_mean"], torch.zeros(4))
    outputs_NC = Network(module.eval())({"pixel_values": digits(300).pixels})
    assert (outputs_NC.argmax(dim=1) == digits(300).labels).float().mean() > 0.9


class Kept:
    """What `finalise` left behind, as the store would open it."""

    def __init__(self, training: Training, state: State):
        result = training.finalise(state, pa.table({"step": [0]}))
        self.facts = result.facts
        self.families = {family: dict(tiles) for family, tiles in result.tensors.items()}

    def tiles(self, family: str) -> dict[str, Tensor]:
        return self.families[family]


def test_a_step_is_adamw_on_the_mean_gradient_of_the_batch():
    settings = {
        "epochs": 1,
        "batch_size": 25,
        "learning_rate": 0.01,
        "warmup_fraction": 0.0,
        "schedule": "constant",
    }
    training = bind(num_slices=1, train="head.*", weight_decay=0.1, **settings)
    module = training.network.module
    module.drop.p = 0.0
    state, _ = run(training)
    head = Net()
    head.load_state_dict(module.state_dict())
    head.train().drop.p = 0.0
    optimiser = torch.optim.AdamW(head.head.parameters(), lr=0.01, weight_decay=0.1)
    for number in range(training.num_steps):
        batch = digits(50).batch(training.schedule.epochs.batch(number))
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(batch.inputs["pixel_values"]), batch.targets).backward()
        optimiser.step()
    # The same float32 operations but for a sum divided instead of a mean; AdamW divides by the root of tiny
    # numbers, which enlarges the difference.
    torch.testing.assert_close(
        state["weight_float32/head.weight"], head.head.weight.detach().reshape(-1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(state["buffer_float32/norm.running_var"], head.norm.running_var)
    assert "weight_float32/conv.weight" not in state


def test_the_module_and_the_global_generators_are_left_as_they_were():
    training = bind()
    before = copied(training.network.module.state_dict())
    torch.manual_seed(11)
    generator = torch.get_rng_state()
    run(training, steps=1)
    assert same_bits(before, training.network.module.state_dict())
    assert not any(part.training for part in training.network.module.modules())
    assert torch.equal(generator, torch.get_rng_state())


def test_dropout_depends_on_step_and_slice_and_the_clip_bounds_the_step():
    first, _ = run(bind(seed=3), steps=2)
    second, _ = run(bind(seed=4), steps=2)
    assert not same_bits(first, second)
    training = bind(gradient_clip=1e-3, num_slices=1)
    state, _ = run(training, steps=1)
    moments = [value for name, value in state.items() if name.startswith("first_moment")]
    length = torch.cat(moments).norm().item() / (1 - 0.9)
    assert length == pytest.approx(1e-3, rel=1e-5)  # float32 moments


@pytest.mark.parametrize(("num_examples", "batch_size", "epochs"), [(50, 16, 2), (7, 3, 1), (5, 8, 3), (33, 32, 1)])
def test_every_epoch_takes_every_example_once_in_another_order(num_examples, batch_size, epochs):
    schedule = Schedule(TrainingSettings(epochs=epochs, batch_size=batch_size, num_slices=2), num_examples)
    orders = []
    for epoch in range(epochs):
        steps = range(epoch * schedule.epochs.steps_an_epoch, (epoch + 1) * schedule.epochs.steps_an_epoch)
        taken = [index for step in steps for which in range(2) for index in schedule.slice(step, which)]
        assert sorted(taken) == list(range(num_examples))
        assert all(schedule.epochs.smallest_batch <= len(schedule.epochs.batch(step)) <= batch_size for step in steps)
        orders.append(taken)
    assert len({tuple(order) for order in orders}) == epochs


def test_the_step_size_rises_then_falls_to_nothing():
    schedule = Schedule(TrainingSettings(epochs=10, batch_size=5, learning_rate=2.0, warmup_fraction=0.2), 50)
    rates = [schedule.learning_rate(step) for step in range(schedule.epochs.num_steps)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[20] == 2.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("likelihood", [Gaussian(), Gaussian(0.5), Bernoulli()])
def test_other_likelihoods_train_too(likelihood):
    targets = normals(Seed(1), 50, 2)
    if likelihood.name == "bernoulli":
        targets = (targets > 0).float()
    _, figures = run(bind(likelihood=likelihood, targets=targets, epochs=8, learning_rate=1e-2))
    assert figures[-1]["loss"] < figures[0]["loss"]
    assert ("accuracy" in figures[0]) == (likelihood.name == "bernoulli")


def test_label_smoothing_and_sixteen_bit_products_change_the_numbers_and_train():
    plain, _ = run(bind(), steps=1)
    for fields in ({"label_smoothing": 0.1}, {"autocast": "bfloat16"}):
        state, figures = run(bind(**fields))
        assert figures[-1]["loss"] < figures[0]["loss"]
        assert state["weight_float32/head.weight"].dtype == torch.float32
        assert not same_bits(run(bind(**fields), steps=1)[0], plain)


def test_bad_requests_are_refused_with_a_sentence():
    with pytest.raises(ConfigError, match="no classes"):
        bind(likelihood=Bernoulli(), targets=torch.ones(50), label_smoothing=0.1)
    with pytest.raises(ConfigError, match="chooses no weights"):
        bind(train="heads.*")
    with pytest.raises(DataError, match="Example 0 has label 12"):
        Training(
            TrainingSettings(epochs=1),
            Categorical(),
            Bench(fresh_network(), Pixels(torch.zeros(2, 1, 8, 8), torch.tensor([12, 1]))),  # type: ignore[arg-type]
        )
    with pytest.raises(DataError, match="cannot be cut into 4 slices"):
        bind(num=3)
    with pytest.raises(ValidationError, match="num_slices"):
        TrainingSettings(epochs=1, batch_size=2, num_slices=3)
    with pytest.raises(NumericalError, match="lower `learning_rate`"):
        run(bind(learning_rate=1e30))
