"""Rows of the Jacobian: see `protocol`. `row_backend` chooses how they are computed."""

from afterfit.network.functional import Network
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.protocol import RowBackend


def row_backend(network: Network, memory_gb: float) -> RowBackend:
    """The backend for a network, within a memory budget in GB for what is explicit at once."""
    return FunctionalBackend(network, memory_gb)
