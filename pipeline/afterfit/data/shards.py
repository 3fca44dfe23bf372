"""The fixed shard table: how a data set is cut, whatever the cluster."""

from itertools import pairwise

SHARD_SECONDS = 30.0
"""Least length of a shard on the reference device: a unit of work must outweigh its overhead."""

MAX_SHARDS = 512


def shard_ranges(num_examples: int, seconds_per_example: float, num_shards: int | None = None) -> list[range]:
    """Cut examples 0 to N - 1 into consecutive shards, as equal as possible, the longer ones first.

    Args:
        num_examples: N.
        seconds_per_example: counted cost of one example on the reference device (FLOPs over its rate), never
            measured, since the number of shards must be the same on every machine.
        num_shards: to set the number by hand; lowered to the largest power of two that is at most this and N.

    Returns:
        A power of two of ranges, at least 1, at most 512 and at most N; none is empty unless N is 0.
    """
    wanted = num_examples * seconds_per_example / SHARD_SECONDS if num_shards is None else float(num_shards)
    bound = int(min(max(wanted, 1.0), MAX_SHARDS, max(num_examples, 1)))
    count = 1 << (bound.bit_length() - 1)
    size, longer = divmod(num_examples, count)
    starts = [shard * size + min(shard, longer) for shard in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]
