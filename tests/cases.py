"""Tiny networks in float64 with dense ground truth: the table that every method is tested over.

A new kind of network costs one row of `NETWORK_CASES`. The oracles here are plain loops over autograd and
full (P, P) matrices; they use nothing of `afterfit.rows` or `afterfit.linalg`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor, nn

from afterfit.algebra import Batch, batches, consecutive
from afterfit.layout import Layout
from afterfit.network.functional import Network, OutputRule
from afterfit.network.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from afterfit.seeds import Seed, normals
from tiny_networks import bert, conv_net, llama, mlp, numbers, tokens, vit

TILE_WEIGHTS = 48
"""Small enough that every network here has several tiles, and large blocks are cut."""

MICRO_BATCH = 4
"""Does not divide every N, so that some last micro-batches are short."""

NOISE_VARIANCE = 0.3


@dataclass(frozen=True, eq=False)
class TensorExamples:
    """`afterfit.algebra.Examples` over tensors that are held whole."""

    inputs: Mapping[str, Tensor]
    labels: Tensor

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.labels)

    def batch(self, indexes: Sequence[int]) -> Batch:
        """These examples, in this order."""
        chosen = torch.tensor(list(indexes), dtype=torch.int64)
        return Batch({name: value[chosen] for name, value in self.inputs.items()}, self.labels[chosen], chosen)

    def targets(self) -> Tensor:
        """All of them."""
        return self.labels


@dataclass(frozen=True, eq=False)
class NetworkCase:
    """A network that is made anew at each call, data for it, and what its outputs mean."""

    name: str
    build: Callable[..., nn.Module]  # takes `attention` where has_attention
    make_inputs: Callable[[Seed, int], Mapping[str, Tensor]]  # from a place and N
    num_outputs: int  # C
    num_weights: int  # P
    num_examples: int  # N
    likelihood: Likelihood = field(default_factory=Categorical)
    output: OutputRule = "auto"
    has_attention: bool = False
    rtol: float = 1e-10  # float64, sums of at most a few thousand terms
    eager_rtol: float = 1e-5  # transformers' eager attention rounds its softmax to float32

    def __str__(self) -> str:
        return self.name

    def module(self, *, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> nn.Module:
        """The trained module in eval mode; the same numbers each time."""
        module = self.build(attention=attention) if self.has_attention else self.build()
        module.to(dtype=torch.float64).eval()
        _set_weights(module, Seed(1).child(self.name))
        return module.to(dtype=dtype)

    def network(
        self,
        *,
        weights: str | Sequence[str] = "*",
        tile_weights: int = TILE_WEIGHTS,
        attention: str = "sdpa",
        dtype: torch.dtype = torch.float64,
    ) -> Network:
        """The trained network as the program sees it."""
        module = self.module(attention=attention, dtype=dtype)
        return Network(module, weights, output=self.output, tile_weights=tile_weights)

    @property
    def examples(self) -> TensorExamples:
        """The training data."""
        return _examples(self, "train", self.num_examples)

    @property
    def items(self) -> list[dict[str, Tensor]]:
        """The training data as `afterfit.fit` takes them."""
        examples = self.examples
        target = "target" if self.likelihood.name == "gaussian" else "label"
        return [
            {name: value[i] for name, value in examples.inputs.items()} | {target: examples.labels[i]}
            for i in range(examples.num_examples)
        ]

    @property
    def fresh(self) -> TensorExamples:
        """Five examples that are not in the training data."""
        return _examples(self, "fresh", 5)

    @property
    def batches(self) -> list[Batch]:
        """The training data in micro-batches of `MICRO_BATCH`, the last one shorter."""
        return list(batches(self.examples, consecutive(range(self.num_examples), MICRO_BATCH)))


@cache
def _examples(case: NetworkCase, role: str, num: int) -> TensorExamples:
    place = Seed(2).child(case.name, role)
    if isinstance(case.likelihood, Gaussian):
        targets = normals(place.child("targets"), num, case.num_outputs, dtype=torch.float64)
    else:
        # Every class occurs, in an order that is not the order of the outputs.
        targets = (torch.arange(num) * 5 + 1) % max(case.num_outputs, 2)
    return TensorExamples(case.make_inputs(place, num), targets)


def _set_weights(module: nn.Module, seed: Seed) -> None:
    """Weights and running statistics of ordinary size, none of them 0 or 1."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = normals(seed.child(name), *weight.shape, dtype=torch.float64)
            if weight.dim() > 1:
                weight.copy_(1.2 * noise / math.sqrt(weight[0].numel()))
            else:
                weight.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
        for name, statistic in module.named_buffers():
            if name.endswith("running_mean"):
                statistic.copy_(0.4 * normals(seed.child(name), *statistic.shape))
            if name.endswith("running_var"):
                statistic.copy_(0.5 + normals(seed.child(name), *statistic.shape).square())


NETWORK_CASES: tuple[NetworkCase, ...] = (
    NetworkCase(
        "mlp",
        partial(mlp, 5, 12, 4),
        partial(numbers, name="input", shape=(5,)),
        num_outputs=4,
        num_weights=124,
        num_examples=14,
    ),
    NetworkCase(
        "conv_net",
        conv_net,
        partial(numbers, name="input", shape=(1, 4, 4)),
        num_outputs=3,
        num_weights=251,
        num_examples=10,
    ),
    NetworkCase(
        "vit",
        vit,
        partial(numbers, name="pixel_values", shape=(1, 6, 6)),
        num_outputs=3,
        num_weights=431,
        num_examples=9,
        has_attention=True,
    ),
    NetworkCase(
        "bert",
        bert,
        partial(tokens, vocabulary=13, length=5),
        num_outputs=3,
        num_weights=515,
        num_examples=9,
        has_attention=True,
    ),
    NetworkCase(
        "llama",
        llama,
        partial(tokens, vocabulary=11, length=6),
        num_outputs=11,
        num_weights=448,
        num_examples=6,
        output="last_token",
        has_attention=True,
        rtol=1e-5,  # its RMSNorm rounds to float32 inside
    ),
    NetworkCase(
        "regression",
        partial(mlp, 4, 16, 2),
        partial(numbers, name="input", shape=(4,)),
        num_outputs=2,
        num_weights=114,
        num_examples=13,
        likelihood=Gaussian(NOISE_VARIANCE),
    ),
    NetworkCase(
        "bernoulli",
        partial(mlp, 4, 18, 1),
        partial(numbers, name="input", shape=(4,)),
        num_outputs=1,
        num_weights=109,
        num_examples=16,
        likelihood=Bernoulli(),
    ),
)

ATTENTION_CASES = tuple(case for case in NETWORK_CASES if case.has_attention)


def case_named(name: str) -> NetworkCase:
    """One row of the table."""
    return next(case for case in NETWORK_CASES if case.name == name)


# Dense ground truth, in float64 and in the layout's flat order.


def flat(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """Block-shaped tensors as one vector (P,)."""
    return torch.cat([layout.cut(tensors, tile) for tile in layout.tiles])


def dense_jacobian(network: Network, batch: Batch) -> Tensor:
    """Derivatives of all outputs in all weights, (B, C, P): one backward pass for each output."""
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in network.weights.items()}
    outputs_BC = network(batch.inputs, leaves)
    rows = []
    for output in outputs_BC.flatten():
        gradients = torch.autograd.grad(output, list(leaves.values()), retain_graph=True, allow_unused=True)
        whole = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves.values(), gradients, strict=True)
        ]
        rows.append(flat(network.layout, dict(zip(leaves, whole, strict=True))))
    return torch.stack(rows).reshape(*outputs_BC.shape, -1).detach()


def dense_outputs(network: Network, batch: Batch) -> Tensor:
    """(B, C)."""
    with torch.no_grad():
        return network(batch.inputs)


@cache
def dense_training_rows(case: NetworkCase) -> Tensor:
    """The Jacobian at all training inputs, (N, C, P)."""
    return dense_jacobian(case.network(), case.examples.batch(range(case.num_examples)))


@cache
def dense_ggn(case: NetworkCase) -> Tensor:
    """Sum over the training data of J_i^T H_i J_i, (P, P)."""
    outputs_NC = dense_outputs(case.network(), case.examples.batch(range(case.num_examples)))
    curvature_NCC = case.likelihood.hessian(outputs_NC)
    rows_NCP = dense_training_rows(case)
    return torch.einsum("ncp,ncd,ndq->pq", rows_NCP, curvature_NCC, rows_NCP)


def dense_precision(case: NetworkCase, prior_precision: float, temperature: float = 1.0) -> Tensor:
    """GGN / T + prior precision I, (P, P)."""
    ggn_PP = dense_ggn(case)
    return ggn_PP / temperature + prior_precision * torch.eye(len(ggn_PP), dtype=ggn_PP.dtype)


def dense_laplace(case: NetworkCase, prior_precision: float, temperature: float = 1.0) -> Callable[[Batch], Tensor]:
    """Linearised Laplace: from a micro-batch to J (GGN / T + prior I)^-1 J^T, (B, C, C)."""
    network = case.network()
    factor_PP = torch.linalg.cholesky(dense_precision(case, prior_precision, temperature))

    def covariance(batch: Batch) -> Tensor:
        rows_BCP = dense_jacobian(network, batch)
        half_BPC = torch.linalg.solve_triangular(factor_PP, rows_BCP.mT, upper=False)
        return half_BPC.mT @ half_BPC

    return covariance


def dense_evidence(case: NetworkCase, prior_precision: float, temperature: float = 1.0) -> float:
    """Laplace's log evidence in nats, the data term over T.

    sum_i log p(y_i | f_i) / T - prior |weights|^2 / 2 - log det(I + GGN / (T prior)) / 2
    """
    network = case.network()
    everything = case.examples.batch(range(case.num_examples))
    fit = case.likelihood.log_density(dense_outputs(network, everything), case.examples.targets()).sum()
    weights_P = flat(network.layout, network.weights)
    scaled_PP = dense_precision(case, prior_precision, temperature) / prior_precision
    return float(fit / temperature - prior_precision * weights_P @ weights_P / 2 - torch.logdet(scaled_PP) / 2)


def assert_near(actual: Tensor, expected: Tensor, rtol: float) -> None:
    """Every entry agrees to rtol of the largest one expected; what cancels has no digits of its own."""
    assert actual.shape == expected.shape
    worst = float((actual.double() - expected.double()).abs().max())
    scale = float(expected.double().abs().max())
    assert worst <= rtol * scale, f"off by {worst:.3g} where the largest is {scale:.3g}: {worst / scale:.3g}"
