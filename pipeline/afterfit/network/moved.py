"""A network's weights displaced along a direction that is kept by tiles."""

from collections.abc import Mapping

from torch import Tensor

from afterfit.errors import NetworkError
from afterfit.network.functional import Network


def moved_weights(network: Network, draws: Mapping[str, Tensor], column: int, scale: float) -> dict[str, Tensor]:
    """The weights theta + scale d: block name -> tensor shaped like the block. Holds P numbers.

    Args:
        network: theta.
        draws: tiles (P_tile, k), which may be lazy.
        column: of d.
        scale: of the displacement.

    Raises:
        NetworkError: for weights that are not in memory.
    """
    if network.away:
        raise NetworkError(
            f"The plain network at a draw needs all chosen weights in memory, and {min(network.away)!r} is put away; "
            "set `prediction.by: linearised`, or load the network without offloading."
        )
    moved = network.layout.assemble({name: draws[name][:, column].clone() for name in draws})
    return {
        name: weight + (scale * moved[name].to(weight.device)).to(weight.dtype)
        for name, weight in network.weights.items()
    }
