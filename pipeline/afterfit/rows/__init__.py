"""Rows of the Jacobian, the primitive that every method uses: see `protocol`. Public: `ggn_times` and its relatives."""

from afterfit.network.functional import Network
from afterfit.rows.products import ggn_diagonal, ggn_times, ntk
from afterfit.rows.protocol import RowBackend
from afterfit.rows.tape import TapeBackend

__all__ = ["ggn_diagonal", "ggn_times", "ntk", "row_backend"]


def row_backend(network: Network, memory_gb: float) -> RowBackend:
    """The backend for a network, within a memory budget in GB for what is explicit at once."""
    return TapeBackend(network, memory_gb)
