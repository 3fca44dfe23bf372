"""Fit a posterior on the Ray cluster that this job was submitted to. Submitted again, it goes on.

    ray job submit --submission-id NAME-1 -- python jobs/fit.py CONFIG --store s3://bucket/NAME

Takes the options of `afterfit run`, of which `--store` has to be given.
"""

import sys
from collections.abc import Sequence

from afterfit.cli import app


def main(arguments: Sequence[str]) -> None:
    """`afterfit run` on that cluster; ends the process with its exit code."""
    named = {argument.partition("=")[0] for argument in arguments}
    if not named & {"--store", "--help"}:
        # The default lies in the job's working directory, which goes with the job.
        print("Error: give --store: s3://, gs://, or a folder on a disk that all nodes share.", file=sys.stderr)
        sys.exit(2)
    app(["run", "--engine", "ray", "--address", "auto", *arguments], prog_name="afterfit")


if __name__ == "__main__":
    main(sys.argv[1:])
