"""Means over splits with their standard errors, and how far they are from what a paper printed."""

import math

import pyarrow as pa


def mean_and_error(table: pa.Table, column: str) -> tuple[float, float]:
    """Of one score; the standard error of a single row is taken for zero."""
    values = table[column].to_numpy()
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def above(ours: tuple[float, float], printed: float, error: float) -> float:
    """By how many standard errors of the difference ours is above what was printed."""
    return (ours[0] - printed) / math.hypot(ours[1], error)
