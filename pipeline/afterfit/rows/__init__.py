"""Rows of the Jacobian, the primitive that every method uses: see `protocol`. Public: `ggn_times` and its relatives."""

from afterfit.arithmetic import Arithmetic
from afterfit.network.functional import Network
from afterfit.rows.products import ggn_diagonal, ggn_times, ntk
from afterfit.rows.protocol import RowBackend
from afterfit.rows.tape import TapeBackend

__all__ = ["ggn_diagonal", "ggn_times", "ntk", "row_backend"]


def row_backend(network: Network, memory_gb: float, arithmetic: Arithmetic) -> RowBackend:
    """The backend for a network, within a memory budget in GB for what is explicit at once.

    Raises:
        ConfigError: for an arithmetic that the network or the machine has not.
    """
    return TapeBackend(network, memory_gb, arithmetic)
