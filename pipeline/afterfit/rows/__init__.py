"""Rows of the Jacobian: see `protocol`. `row_backend` chooses how they are computed."""

from afterfit.network.functional import Network
from afterfit.rows.protocol import RowBackend
from afterfit.rows.tape import TapeBackend


def row_backend(network: Network, memory_gb: float) -> RowBackend:
    """The backend for a network, within a memory budget in GB for what is explicit at once."""
    return TapeBackend(network, memory_gb)
