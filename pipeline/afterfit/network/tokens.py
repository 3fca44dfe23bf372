"""The likelihood of a language model: one categorical variable for each token, Monte Carlo cotangents.

Outputs (B, C) are the logits (B, T, V) of all positions as one row, C = T V, which is a view. Everything here takes
some tokens at a time, each with its whole vocabulary: besides the logits and what is returned, nothing of their size
exists.
Shapes: B examples, T positions, V tokens in the vocabulary, S draws of one example, n tokens at a time.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.errors import ConfigError, DataError
from afterfit.network.softmax import labels_at, one_hot_minus, wide_log_softmax
from afterfit.precision import state_dtype
from afterfit.seeds import Seed, uniforms

IGNORED = -100
"""Label of a token that does not count, as in torch and transformers."""
RUN_BYTES = 1 << 20
"""Of the cumulative probabilities of the tokens that are taken at once; they stay in a cache."""
MAX_RUNS = 128
"""Of an example's or micro-batch's tokens: a device is not kept busy by short runs."""


@dataclass(frozen=True, slots=True)
class TokenCategorical:
    """One of V tokens at each position that counts; outputs are logits (B, T V), targets (B, T), not shifted.

    Given the logits, tokens are independent, so the output Hessian is block diagonal: G is the sum over tokens of
    J_t^T (diag(p_t) - p_t p_t^T) J_t. An exact root has T (V - 1) cotangents, and is not made. One draw y_t ~ p_t for
    each token gives independent gradients e_y - p_t with mean zero, hence one cotangent for all of an example's tokens
    whose outer product has the expectation of the Hessian: products of different tokens vanish in the mean.

    Source: Martens (2020), arXiv:1412.1193, and Kunstner, Balles, Hennig (2019), arXiv:1905.12558: for a softmax the
    GGN is the Fisher matrix, the mean of outer products of gradients at targets drawn from the model itself.
    """

    is_causal: bool = True
    """Logits at t are of token t + 1, as in a causal language model; else of token t, as in a masked one."""
    counts_BT: Tensor | None = field(default=None, compare=False, repr=False)
    """Which positions' logits count, boolean; None until `on` gives it."""

    name: ClassVar[str] = "tokens"

    def on(self, batch: Batch) -> "TokenCategorical":
        """The same for the examples of a micro-batch, whose masks tell the positions that count.

        What is predicted must be attended to (`attention_mask`), must be predicted from where is attended to, and must
        not be labelled -100, where there are labels: the batch's targets, (B, T), not shifted.

        Raises:
            DataError: for inputs that do not tell the positions, or masks of another shape.
        """
        shape = token_shape(batch.inputs)
        attended_BT = torch.ones(shape, dtype=torch.bool, device=batch.indexes.device)
        if "attention_mask" in batch.inputs:
            attended_BT = _like(shape, batch.inputs["attention_mask"], "The attention mask") != 0
        known_BT = attended_BT
        if batch.targets is not None:
            labelled_BT = _like(shape, batch.targets, "The table of labels") != IGNORED
            known_BT = attended_BT & labelled_BT.to(attended_BT.device)
        return replace(self, counts_BT=self._before(known_BT, False) & attended_BT)

    def num_cotangents(self, num_outputs: int) -> int:
        """Refused: of an exact root there would be T (V - 1)."""
        refuse_exact()

    def log_density(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Log probability of each example's tokens that count, (B,), summed over them, in nats."""
        counts_BT, logits_BTV = self._by_token(outputs_BC)
        labels_BT = self._labels(targets, logits_BTV)
        found_BT = torch.zeros(counts_BT.shape, dtype=state_dtype(outputs_BC.dtype), device=outputs_BC.device)
        for at in _runs(counts_BT & (labels_BT != IGNORED), logits_BTV.shape[2]):
            found_BT[at] = wide_log_softmax(logits_BTV[at]).gather(1, labels_BT[at][:, None])[:, 0]
        return found_BT.sum(dim=1)

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """One at the label minus the probabilities, zero where a token does not count, (B, C), in the outputs' dtype.

        Holds nothing else of the logits' size.
        """
        counts_BT, logits_BTV = self._by_token(outputs_BC)
        labels_BT = self._labels(targets, logits_BTV)
        made_BTV = torch.zeros_like(logits_BTV)
        for at in _runs(counts_BT & (labels_BT != IGNORED), logits_BTV.shape[2]):
            p_nV = _probabilities(logits_BTV[at])
            made_BTV[at] = one_hot_minus(p_nV, labels_BT[at][:, None])[:, 0].to(made_BTV.dtype)
        return made_BTV.flatten(1)

    def hessian(self, outputs_BC: Tensor) -> Tensor:
        """Refused: it would be (B, T V, T V)."""
        refuse_exact()

    def root(self, outputs_BC: Tensor) -> Tensor:
        """Refused: it would be (B, T (V - 1), T V)."""
        refuse_exact()

    def sample_cotangents(self, outputs_BC: Tensor, seed: Seed, indexes_B: Tensor, num: int) -> Tensor:
        """Gradients at tokens drawn by inversion, one for each that counts, over sqrt(num), (B, num, C).

        They are computed in float32 (float64 where the outputs are) and returned in the outputs' dtype, in which the
        backward pass takes them. A draw is named by seed, example, position and its number: how examples are batched,
        or padded on the right, does not change it.

        Cost: a softmax of the logits, and a sum and `num` writes of them. Holds `num` buffers of the logits' size: what
        is returned.
        """
        counts_BT, logits_BTV = self._by_token(outputs_BC)
        (num_examples, length, vocabulary), device = logits_BTV.shape, outputs_BC.device
        keys = [seed.child("tokens", index).key() for index in indexes_B.tolist()]
        uniforms_BTS = torch.stack([uniforms(key, range(length), num, device=device) for key in keys])
        made_BSTV = logits_BTV.new_zeros(num_examples, num, length, vocabulary)
        for example_n, position_n in _runs(counts_BT, vocabulary * num):
            p_nV = _probabilities(logits_BTV[example_n, position_n])
            drawn_nS = labels_at(p_nV, uniforms_BTS[example_n, position_n])
            made_nSV = one_hot_minus(p_nV, drawn_nS).div_(math.sqrt(num))
            made_BSTV[example_n, :, position_n] = made_nSV.to(made_BSTV.dtype)
        return made_BSTV.flatten(2)

    def check(self, targets: Tensor, num_outputs: int) -> None:
        """Labels must be integers (B, T) from 0 to V - 1, or -100.

        Raises:
            DataError: if they are not.
        """
        if targets.dim() != 2 or targets.is_floating_point() or targets.is_complex():
            raise DataError(
                f"Labels of tokens are {targets.dtype} of shape {tuple(targets.shape)}; give integers (examples, "
                "tokens)."
            )
        vocabulary, rest = divmod(num_outputs, targets.shape[1])
        if rest:
            raise DataError(
                f"The network's {num_outputs} outputs are no logits of {targets.shape[1]} tokens; label each token."
            )
        wrong = (targets != IGNORED) & ((targets < 0) | (targets >= vocabulary))
        if bool(wrong.any()):
            example, position = wrong.nonzero()[0].tolist()
            raise DataError(
                f"Token {position} of example {example} has label {int(targets[example, position])}, but the "
                f"vocabulary has tokens 0 to {vocabulary - 1}; label with {IGNORED} what does not count."
            )

    def _before(self, values_BT: Tensor, last: float) -> Tensor:
        """At each position, the value at the token that its logits are of; `last` where there is none."""
        if not self.is_causal:
            return values_BT
        return torch.cat([values_BT[:, 1:], torch.full_like(values_BT[:, :1], last)], dim=1)

    def _labels(self, targets: Tensor, logits_BTV: Tensor) -> Tensor:
        """At each position, the label of the token that its logits are of, (B, T)."""
        self.check(targets, logits_BTV.shape[1] * logits_BTV.shape[2])
        return self._before(targets.to(logits_BTV.device, torch.int64), IGNORED)

    def _by_token(self, outputs_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions count, and the logits by position, as a view."""
        if self.counts_BT is None:
            raise ConfigError("The tokens that count are not known; call `TokenCategorical().on(batch)` first.")
        counts_BT = self.counts_BT.to(outputs_BC.device)
        if len(counts_BT) != len(outputs_BC) or outputs_BC.shape[1] % counts_BT.shape[1]:
            raise DataError(
                f"Outputs of shape {tuple(outputs_BC.shape)} are no logits of {tuple(counts_BT.shape)} tokens; the "
                "network must give logits for every token of its inputs."
            )
        return counts_BT, outputs_BC.unflatten(1, (counts_BT.shape[1], -1))


def token_shape(inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Examples and positions, (B, T): those of the attention mask, or of the first input that has this many dimensions.

    Raises:
        DataError: if no input has.
    """
    found = [value for value in (inputs.get("attention_mask"), *inputs.values()) if value is not None]
    flat = next((value for value in found if value.dim() == 2), None)
    if flat is None:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
        raise DataError(f"No input has the shape (examples, tokens), but {shapes}; give an `attention_mask` of it.")
    return flat.shape[0], flat.shape[1]


def _like(shape: tuple[int, int], mask_BT: Tensor, what: str) -> Tensor:
    if tuple(mask_BT.shape) != shape:
        raise DataError(f"{what} has the shape {tuple(mask_BT.shape)}; {shape} is needed, a number for each token.")
    return mask_BT


def _runs(counts_BT: Tensor, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Examples and positions of the tokens that count, some at a time, each of so many numbers."""
    tokens_X2 = counts_BT.nonzero()
    at_once = max(1, RUN_BYTES // (8 * numbers), -(-len(tokens_X2) // MAX_RUNS))
    for tokens_n2 in tokens_X2.split(at_once):
        example_n, position_n = tokens_n2.unbind(1)
        yield example_n, position_n


def _probabilities(logits_nV: Tensor) -> Tensor:
    """The softmax, each token's bits its own: an elementwise `exp` may round by the place in a vector register."""
    return torch.softmax(logits_nV, dim=1, dtype=state_dtype(logits_nV.dtype))


def refuse_exact() -> NoReturn:
    """What is told where exact cotangents are asked for.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "The tokens likelihood has no exact cotangents and no output Hessian, which would be as wide as all logits of "
        "an example; ask for Monte Carlo cotangents with `num_samples`, 1 for example."
    )
