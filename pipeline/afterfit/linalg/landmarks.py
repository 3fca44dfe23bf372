"""Which rows of the training Jacobian serve as landmarks: distinct (example, output) pairs, classes balanced."""

import numpy as np
from numpy.typing import NDArray

from afterfit.errors import ConfigError
from afterfit.seeds import Seed

Integers = NDArray[np.int64]

PERMUTED_NUMBERS = 1 << 21
"""Outputs that are permuted at once: N x C does not fit where C is a vocabulary."""


def balanced_landmarks(
    labels_N: Integers, num_outputs: int, num_landmarks: int, seed: Seed
) -> tuple[Integers, Integers]:
    """Choose landmark rows without repetition.

    Examples are taken class by class in turn, each class in random order, so any number of them is balanced. Each
    serves once with a random output; beyond M = N they serve again, each with another of its outputs.

    Args:
        labels_N: class of each example; all zeros where there are no classes.
        num_outputs: C.
        num_landmarks: M.
        seed: the place of this choice.

    Returns:
        The examples (M,) and outputs (M,) of the rows.

    Raises:
        ConfigError: if M exceeds N C.

    Cost: O(N (C + log N)); holds N numbers, not N C.
    Source: Deng, Zhou, Zhu (2022), arXiv:2210.12642, which draws landmarks uniformly.
    """
    num_examples = len(labels_N)
    check_num_landmarks(num_landmarks, num_examples, num_outputs)
    order_N = _in_turn(labels_N, seed.child("examples").numpy())
    passes_M, places_M = np.divmod(np.arange(num_landmarks), num_examples)
    examples_M = order_N[places_M]
    outputs_M = np.empty(num_landmarks, dtype=np.int64)
    random = seed.child("outputs").numpy()
    step = max(1, PERMUTED_NUMBERS // num_outputs)
    for start in range(0, num_examples, step):  # row after row from one stream: the bits do not depend on the step
        held = min(step, num_examples - start)
        permuted_BC = random.permuted(np.tile(np.arange(num_outputs, dtype=np.int64), (held, 1)), axis=1)
        here = np.flatnonzero((examples_M >= start) & (examples_M < start + held))
        outputs_M[here] = permuted_BC[examples_M[here] - start, passes_M[here]]
    return examples_M, outputs_M


def _in_turn(labels_N: Integers, random: np.random.Generator) -> Integers:
    """All examples, the first of every class, then the second of every class, and so on."""
    shuffled_N = random.permutation(len(labels_N))
    turn_N = np.empty(len(labels_N), dtype=np.int64)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N[shuffled_N] == label)
        turn_N[members] = np.arange(len(members))
    return shuffled_N[np.argsort(turn_N, kind="stable")]


def check_num_landmarks(num_landmarks: int, num_examples: int, num_outputs: int) -> None:
    """Refuse more landmarks than there are rows.

    Raises:
        ConfigError: with the number of rows.
    """
    if num_landmarks > num_examples * num_outputs:
        raise ConfigError(
            f"`num_landmarks` is {num_landmarks}, but {num_examples} examples with {num_outputs} outputs have only "
            f"{num_examples * num_outputs} rows; lower it."
        )
