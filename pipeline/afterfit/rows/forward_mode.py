"""Products by forward mode: cheaper than rows where columns are fewer than cotangents."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterfit.network.functional import Network
from afterfit.precision import CORE


def has_forward_mode(network: Network) -> bool:
    """Whether forward mode gives the same as reverse mode. It cannot reach weights that are away.

    An embedding that keeps a padding row has no gradient there in reverse mode, but has one in forward mode. Rows
    are what reverse mode gives, which is also what training saw.
    """
    embeddings = (part for part in network.module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag))
    return not network.away and all(part.padding_idx is None for part in embeddings)


def push_forward(
    network: Network, inputs: Mapping[str, Tensor], cotangents_BSC: Tensor, columns: Mapping[str, Tensor]
) -> Tensor:
    """U (J V), (B, S, k) in float64, one column at a time. Fused attention has no forward mode, so it is made plain.

    Cost: about two forward passes for each column.
    """
    products = []
    for column in range(next(iter(columns.values())).shape[1]):
        flat = {name: tile_Pk[:, column] for name, tile_Pk in columns.items()}
        tangent = {
            name: direction.to(network.weights[name]) for name, direction in network.layout.assemble(flat).items()
        }
        # Weights that are not chosen would otherwise have a graph for reverse mode recorded as well.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            pushed = torch.func.jvp(lambda weights: network(inputs, weights), (network.weights,), (tangent,))
        products.append(pushed[1])
    moved_BCk = torch.stack(products, dim=-1).to(CORE)
    return cotangents_BSC.to(CORE) @ moved_BCk
