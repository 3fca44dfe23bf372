"""How good predictions are: scores, and the tables that reliability and confidence pictures are drawn from.

Shapes: N examples, C classes or outputs. Probabilities may also be one column, that of class 1. All sums are
float64.

These are our own lines and not torchmetrics' (1.9), because measured: its calibration error and AUROC are
computed in float32 whatever comes in, so scores closer than 1e-7 tie; its bins are closed on the left, with a
bin of its own for a confidence of exactly 1; and inputs outside [0, 1] by one rounding, or in nats, are
silently taken for logits and squashed.
"""

import math
from collections.abc import Mapping

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.errors import DataError, NumericalError

NUM_BINS = 15
SUM_TOLERANCE = 1e-3  # of rows of probabilities from one; 16-bit rounding over 1000 classes stays below
Z_90 = 1.6448536269514722  # half width of the central 90 % of a standard normal


def score_table(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of class probabilities (N, C), or (N, 1) or (N,) of class 1, against labels (N,).

    Returns:
        accuracy; nll, nats per example; brier, the sum over classes, so 0 to 2; ece, over 15 bins;
        max_probability, the mean of the largest.

    Raises:
        DataError: for no examples, or labels that are no class.
        NumericalError: for probabilities that are not finite or do not sum to one.
    """
    whole = checked(probabilities)
    targets = _checked_labels(labels, whole)
    return {
        "accuracy": float((whole.argmax(dim=1) == targets).double().mean()),
        "nll": negative_log_likelihood(whole, targets),
        "brier": brier(whole, targets),
        "ece": calibration_error(whole, targets),
        "max_probability": float(whole.amax(dim=1).double().mean()),
    }


def ood_table(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Scores of telling examples of the training distribution from others by the probabilities alone.

    Args:
        inside: probabilities of in-distribution examples, (N, C).
        outside: of the others, (N', C).

    Returns:
        ood_auroc, by 1 - largest probability; ood_auroc_entropy, by the entropy; ood_max_probability, the
        mean of the largest over `outside`.
    """
    near, far = checked(inside), checked(outside)
    return {
        "ood_auroc": auroc(-far.amax(dim=1), -near.amax(dim=1)),
        "ood_auroc_entropy": auroc(entropy(far), entropy(near)),
        "ood_max_probability": float(far.amax(dim=1).double().mean()),
    }


def disagreement_table(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """The same by how much draws of the network differ in their probabilities, (N,) and (N',).

    Returns:
        ood_auroc_variance.

    Source: Miani, Roy, Hauberg (2024), arXiv:2410.16901, who score by the variance of the softmax.
    """
    return {"ood_auroc_variance": auroc(outside, inside)}


def regression_table(mean: Tensor, variance: Tensor, targets: Tensor) -> dict[str, float]:
    """Scores of independent Gaussian predictions, all (N, C), or (N,).

    Args:
        mean: of the targets.
        variance: of the targets, noise included.
        targets: what was observed.

    Returns:
        rmse and crps, in the targets' unit, mean over entries; nll, nats per example, outputs summed;
        coverage_90, the share of entries inside their central 90 % interval.

    Raises:
        NumericalError: for moments that are not finite or variances that are not positive.
    """
    if not len(mean):
        raise DataError("There are no examples to score; check the data set and its filters.")
    if not bool(torch.isfinite(mean).all() & torch.isfinite(variance).all() & (variance > 0).all()):
        raise NumericalError("Predicted moments are not finite, or a variance is not positive; add the noise variance.")
    if targets.numel() != mean.numel() or not bool(torch.isfinite(targets).all()):
        raise DataError(
            f"The targets {tuple(targets.shape)} do not fit the predictions {tuple(mean.shape)}, or are NaN."
        )
    centre, spread = mean.double().reshape(len(mean), -1), variance.double().reshape(len(mean), -1)
    error = targets.double().reshape(centre.shape) - centre
    z = error / spread.sqrt()
    nll = 0.5 * (z.square() + (2 * math.pi * spread).log())
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    # Closed form of Gneiting, Raftery (2007), doi:10.1198/016214506000001437, equation 21.
    crps = spread.sqrt() * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    return {
        "rmse": float(error.square().mean().sqrt()),
        "nll": float(nll.sum(dim=1).mean()),
        "coverage_90": float((z.abs() <= Z_90).double().mean()),
        "crps": float(crps.mean()),
    }


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), in nats.

    A probability that underflowed counts as its dtype's smallest normal number, so one example costs at most
    87 nats in float32 and 708 in float64.
    """
    chosen = probabilities.gather(1, labels[:, None]).clamp_min(torch.finfo(probabilities.dtype).tiny)
    return float(-chosen.double().log().mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over examples of the squared distance to the one-hot label, summed over classes: 0 to 2."""
    wide = probabilities.double()
    chosen = wide.gather(1, labels[:, None])[:, 0]
    return float((wide.square().sum(dim=1) - 2 * chosen + 1).mean())


def entropy(probabilities: Tensor) -> Tensor:
    """Of each row, in nats, (N,) float64."""
    return torch.special.entr(probabilities.double()).sum(dim=1)


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a score of `positive` (N,) exceeds one of `negative` (N',), ties counting half.

    Cost: a sort; counts are exact integers.
    """
    ordered = negative.sort().values.contiguous()
    below = torch.searchsorted(ordered, positive.contiguous(), right=False).sum()
    not_above = torch.searchsorted(ordered, positive.contiguous(), right=True).sum()
    return int(below + not_above) / (2 * len(positive) * len(negative))


def calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: mean over examples of |accuracy - confidence| of their bin.

    Source: Guo, Pleiss, Sun, Weinberger (2017), arXiv:1706.04599, equation 3; bins ((b - 1) / n, b / n].
    """
    counts, confidence, correct = _bin_sums(probabilities, labels, num_bins)
    return float((confidence - correct).abs().sum() / counts.sum())


def reliability_table(probabilities: Tensor, labels: Tensor, predictor: str, num_bins: int = NUM_BINS) -> pa.Table:
    """What a reliability diagram shows: predictor, bin_low, bin_high, confidence, accuracy, count.

    Mean confidence and accuracy are null in an empty bin.
    """
    whole = checked(probabilities)
    counts, confidence, correct = _bin_sums(whole, _checked_labels(labels, whole), num_bins)
    filled = [int(count) for count in counts]
    return pa.table(
        {
            "predictor": [predictor] * num_bins,
            "bin_low": [number / num_bins for number in range(num_bins)],
            "bin_high": [(number + 1) / num_bins for number in range(num_bins)],
            "confidence": _means(confidence, filled),
            "accuracy": _means(correct, filled),
            "count": pa.array(filled, pa.int64()),
        }
    )


def confidence_table(probabilities: Tensor, predictor: str, dataset: str, num_bins: int = 30) -> pa.Table:
    """Histogram of the largest probability: predictor, dataset, bin_low, bin_high, count."""
    largest = checked(probabilities).amax(dim=1)
    counts = torch.bincount(_bins(largest, num_bins), minlength=num_bins)
    return pa.table(
        {
            "predictor": [predictor] * num_bins,
            "dataset": [dataset] * num_bins,
            "bin_low": [number / num_bins for number in range(num_bins)],
            "bin_high": [(number + 1) / num_bins for number in range(num_bins)],
            "count": pa.array(counts.tolist(), pa.int64()),
        }
    )


def scores_as_table(predictor: str, dataset: str, figures: Mapping[str, float]) -> pa.Table:
    """A flat mapping of scores as rows: predictor, dataset, metric, value."""
    return pa.table(
        {
            "predictor": [predictor] * len(figures),
            "dataset": [dataset] * len(figures),
            "metric": list(figures),
            "value": pa.array(list(figures.values()), pa.float64()),
        }
    )


def checked(probabilities: Tensor) -> Tensor:
    """Probabilities as (N, C) with C >= 2.

    Raises:
        DataError: if there are no examples.
        NumericalError: if a number is not finite, lies outside [0, 1] or a row does not sum to one.
    """
    if not len(probabilities):
        raise DataError("There are no examples to score; check the data set and its filters.")
    columns = probabilities.reshape(len(probabilities), -1)
    whole = torch.cat([1 - columns, columns], dim=1) if columns.shape[1] == 1 else columns
    unusable = int((~torch.isfinite(whole)).any(dim=1).sum())
    if unusable:
        raise NumericalError(
            f"The probabilities of {unusable} of {len(whole)} examples are not finite; "
            "raise the prior precision, or predict with a float64 network."
        )
    off = (whole.sum(dim=1, dtype=torch.float64) - 1).abs().amax()
    if bool(off > SUM_TOLERANCE) or bool((whole < -SUM_TOLERANCE).any()):
        raise NumericalError(
            f"Rows of probabilities miss a sum of one by up to {float(off):.2g}, or are negative; "
            "give probabilities, not logits."
        )
    return whole


def _checked_labels(labels: Tensor, probabilities: Tensor) -> Tensor:
    targets = labels.reshape(-1).to(probabilities.device, torch.int64)
    if len(targets) != len(probabilities):
        raise DataError(f"There are {len(targets)} labels for {len(probabilities)} examples; give one for each.")
    low, high, classes = int(targets.min()), int(targets.max()), probabilities.shape[1]
    if low < 0 or high >= classes:
        raise DataError(f"Labels run from {low} to {high}, but the classes from 0 to {classes - 1}; remap the labels.")
    return targets


def _bins(values: Tensor, num_bins: int) -> Tensor:
    """The bin of each number of [0, 1]: edges in the numbers' own dtype, so that 0.6 is on the edge 9/15."""
    inner = torch.arange(1, num_bins, device=values.device, dtype=torch.float64) / num_bins
    return torch.bucketize(values, inner.to(values.dtype), right=False)


def _bin_sums(probabilities: Tensor, labels: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each bin: how many examples, their confidences summed, how many were right; float64."""
    confidence, predicted = probabilities.max(dim=1)
    bins = _bins(confidence, num_bins)
    counts = torch.bincount(bins, minlength=num_bins).double()
    confidences = torch.bincount(bins, weights=confidence.double(), minlength=num_bins)
    correct = torch.bincount(bins, weights=(predicted == labels).double(), minlength=num_bins)
    return counts, confidences, correct


def _means(sums: Tensor, counts: list[int]) -> pa.Array:
    means = [float(total) / count if count else None for total, count in zip(sums, counts, strict=True)]
    return pa.array(means, pa.float64())
