"""The figures of an iteration as a table with one row a round or step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa


def appended(table: pa.Table | None, counter: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> pa.Table:
    """The table with rows added; a figure that a row does not have is null.

    Args:
        table: so far; None for none.
        counter: name of the column that counts, "round" or "step".
        rows: number and figures, float64.
    """
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))
    columns = {counter: pa.array([number for number, _ in rows], pa.int64())}
    for name in names:
        columns[name] = pa.array([figures.get(name) for _, figures in rows], pa.float64())
    added = pa.table(columns)
    return added if table is None else pa.concat_tables([table, added], promote_options="default").combine_chunks()
