"""Predict new data with a finished run, on the Ray cluster that this job was submitted to.

    ray job submit -- python jobs/predict.py STORE --data s3://bucket/new --out s3://bucket/predictions.parquet

Takes the options of `afterfit predict`.
"""

import sys
from collections.abc import Sequence

from afterfit.cli import app


def main(arguments: Sequence[str]) -> None:
    """`afterfit predict` on that cluster; ends the process with its exit code."""
    app(["predict", "--engine", "ray", "--address", "auto", *arguments], prog_name="afterfit")


if __name__ == "__main__":
    main(sys.argv[1:])
