"""Small real data sets shipped with scikit-learn, so that the quickstart and the tests need no network.

Every function gives a list of mappings keyed by forward's argument names plus `label` or `target`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afterfit.seeds import Seed

NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 1000, 297, 500
NUM_PICTURES = 500
NUM_DIABETES_TRAIN = 342  # of 442
_PLACE = Seed(2024, ("data", "digits"))


def train() -> list[dict[str, Any]]:
    """1000 handwritten digits: `pixel_values` float32 (1, 8, 8) in [0, 1] and `label` 0 to 9."""
    return _digits(0, NUM_TRAIN)


def validation() -> list[dict[str, Any]]:
    """297 other digits, as `train`."""
    return _digits(NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION)


def test() -> list[dict[str, Any]]:
    """500 other digits, as `train`."""
    return _digits(NUM_TRAIN + NUM_VALIDATION, NUM_TRAIN + NUM_VALIDATION + NUM_TEST)


def pictures() -> list[dict[str, Any]]:
    """500 grey 8 x 8 patches of scikit-learn's two photographs: shaped like digits, and none is one.

    `pixel_values` as in `train`; no label.
    """
    from sklearn.datasets import load_sample_images

    photographs = [np.asarray(photograph) for photograph in load_sample_images().images]
    grey = [photograph.astype(np.float64).mean(axis=2) / 255 for photograph in photographs]
    generator = _PLACE.child("pictures").numpy()
    patches = []
    for number in range(NUM_PICTURES):
        photograph = grey[number % len(grey)]
        top = generator.integers(photograph.shape[0] - 7)
        left = generator.integers(photograph.shape[1] - 7)
        patches.append(photograph[top : top + 8, left : left + 8])
    pixels = torch.from_numpy(np.stack(patches)).float()[:, None]
    return [{"pixel_values": patch} for patch in pixels]


def diabetes_train() -> list[dict[str, Any]]:
    """342 patients: `x` float32 (10,) and `target` float32 (1,), standardised with these rows' statistics."""
    return _diabetes(0, NUM_DIABETES_TRAIN)


def diabetes_test() -> list[dict[str, Any]]:
    """100 other patients, standardised as `diabetes_train`."""
    return _diabetes(NUM_DIABETES_TRAIN, None)


def _digits(start: int, stop: int) -> list[dict[str, Any]]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = _PLACE.child("order").numpy().permutation(len(labels))[start:stop]
    images = torch.from_numpy(pixels[chosen] / 16).float().reshape(-1, 1, 8, 8)
    return _mappings(("pixel_values", "label"), images, labels[chosen].tolist())


def _diabetes(start: int, stop: int | None) -> list[dict[str, Any]]:
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True, scaled=False)
    numbers = np.column_stack([features, target])[_PLACE.child("diabetes").numpy().permutation(len(target))]
    known = numbers[:NUM_DIABETES_TRAIN]
    scaled = torch.from_numpy((numbers - known.mean(axis=0)) / known.std(axis=0)).float()[start:stop]
    return _mappings(("x", "target"), scaled[:, :-1], scaled[:, -1:])


def _mappings(names: Sequence[str], *columns: Tensor | Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
