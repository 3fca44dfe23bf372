"""Landmark rows: distinct, balanced over the classes, all of them where all are asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterfit.errors import ConfigError
from afterfit.linalg import landmarks
from afterfit.linalg.landmarks import balanced_landmarks
from afterfit.seeds import Seed


@st.composite
def choices(draw):
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=30))
    num_outputs = draw(st.integers(1, 5))
    num_landmarks = draw(st.integers(1, len(labels) * num_outputs))
    return np.array(labels), num_outputs, num_landmarks, Seed(draw(st.integers(0, 3)))


@given(choices())
@settings(max_examples=60)
def test_rows_are_distinct_and_exist(choice):
    labels, num_outputs, num_landmarks, _ = choice
    examples, outputs = balanced_landmarks(*choice)
    assert examples.shape == outputs.shape == (num_landmarks,)
    assert len(set(zip(examples.tolist(), outputs.tolist(), strict=True))) == num_landmarks
    assert 0 <= examples.min() <= examples.max() < len(labels)
    assert 0 <= outputs.min() <= outputs.max() < num_outputs


@given(choices())
@settings(max_examples=60)
def test_examples_serve_equally_often_and_any_first_ones_are_balanced_over_the_classes(choice):
    labels, _, num_landmarks, _ = choice
    examples, _ = balanced_landmarks(*choice)
    times = np.bincount(examples, minlength=len(labels))
    assert times.max() - times.min() <= 1
    first = labels[examples[: len(labels)]]
    available = np.bincount(labels)
    for stop in range(1, min(num_landmarks, len(labels)) + 1):
        chosen = np.bincount(first[:stop], minlength=len(available))
        # A class is behind another by more than one only where all of it is chosen.
        behind = chosen < chosen.max() - 1
        assert (chosen[behind] == available[behind]).all()


@given(choices())
@settings(max_examples=30)
def test_fewer_landmarks_are_the_first_of_more(choice):
    labels, num_outputs, num_landmarks, seed = choice
    all_examples, all_outputs = balanced_landmarks(labels, num_outputs, len(labels) * num_outputs, seed)
    examples, outputs = balanced_landmarks(*choice)
    assert (examples == all_examples[:num_landmarks]).all()
    assert (outputs == all_outputs[:num_landmarks]).all()


def test_all_rows_are_all_rows():
    examples, outputs = balanced_landmarks(np.zeros(7, dtype=np.int64), 3, 21, Seed(1))
    assert sorted(zip(examples.tolist(), outputs.tolist(), strict=True)) == [(i, c) for i in range(7) for c in range(3)]


def test_more_than_all_are_refused_with_the_number_there_is():
    with pytest.raises(ConfigError, match="7 examples with 3 outputs have only 21 rows; lower it"):
        balanced_landmarks(np.zeros(7, dtype=np.int64), 3, 22, Seed(1))


def test_another_seed_chooses_others_and_the_same_seed_the_same():
    labels = np.arange(40) % 4
    first = balanced_landmarks(labels, 4, 20, Seed(1))
    again = balanced_landmarks(labels, 4, 20, Seed(1))
    other = balanced_landmarks(labels, 4, 20, Seed(2))
    assert all((left == right).all() for left, right in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).any()


def test_how_many_are_permuted_at_once_does_not_change_the_choice(monkeypatch):
    labels = np.arange(40) % 4
    whole = balanced_landmarks(labels, 4, 90, Seed(1))
    monkeypatch.setattr(landmarks, "PERMUTED_NUMBERS", 12)
    parts = balanced_landmarks(labels, 4, 90, Seed(1))
    assert all((left == right).all() for left, right in zip(whole, parts, strict=True))
