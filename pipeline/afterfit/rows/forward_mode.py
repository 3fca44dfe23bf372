"""Products by forward mode: cheaper than rows where columns are fewer than cotangents."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterfit.network.functional import Network
from afterfit.precision import CORE
from afterfit.resources import is_out_of_memory
from afterfit.rows.mixed import Passes

AGREEMENT = {torch.float64: 1e-3, torch.float32: 1e-2}
"""Of a product with signs, relative to its standard deviation over signs."""


def has_forward_mode(passes: Passes) -> bool:
    """Whether forward mode gives the same as reverse mode. It cannot reach weights that are away.

    It is not taken for the logits of all tokens either: it would hold them several times over, and in float64. Nor in
    mixed precision: autocast converts weights and leaves their tangents, which a convolution on a CPU does not take.

    An embedding that keeps a padding row has no gradient there in reverse mode, but has one in forward mode. Rows
    are what reverse mode gives, which is also what training saw: so that row's tangent is left out, which can only be
    done where nothing else uses the weight.
    """
    network = passes.network
    padded = _padded(network)
    is_taken = network.output != "tokens" and not passes.autocast and not network.away
    return is_taken and all(len(uses) == 1 for uses in padded.values())


def _padded(network: Network) -> dict[str, list[nn.Module]]:
    """Chosen blocks that are embeddings with a padding row -> the layers that hold them."""
    names = {id(weight): name for name, weight in network.module.named_parameters() if name in network.weights}
    holders: dict[str, list[nn.Module]] = {}
    for part in network.module.modules():
        for weight in part._parameters.values():
            if id(weight) in names:
                holders.setdefault(names[id(weight)], []).append(part)
    return {name: parts for name, parts in holders.items() if any(_padding(part) is not None for part in parts)}


def _padding(part: nn.Module) -> int | None:
    return part.padding_idx if isinstance(part, nn.Embedding | nn.EmbeddingBag) else None


def forward_mode_agrees(
    network: Network, inputs: Mapping[str, Tensor], cotangents_BSC: Tensor, gradients: Mapping[str, Tensor]
) -> bool:
    """Whether forward mode exists for all that the network does, and gives what reverse mode gave.

    Args:
        network: of which one example is pushed forward.
        inputs: that example.
        cotangents_BSC: one cotangent.
        gradients: block -> its gradient by reverse mode, for a block that has one.
    """
    block_signs = {
        name: 1.0 - 2.0 * (torch.arange(weight.numel(), device=weight.device) * 2654435761 % 7 % 2)
        for name, weight in network.weights.items()
    }
    flat = {name: signs.view(network.weights[name].shape) for name, signs in block_signs.items()}
    columns = {tile.name: network.layout.cut(flat, tile)[:, None] for tile in network.layout}
    try:
        pushed = float(push_forward(network, inputs, cotangents_BSC, columns))
    except (NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error):  # which says nothing about forward mode, and would show in the bits
            raise
        return False
    products = [(flat[name] * gradient).double() for name, gradient in gradients.items()]
    expected = sum(float(product.sum()) for product in products)
    scale = sum(float(product.square().sum()) for product in products) ** 0.5
    return abs(pushed - expected) <= AGREEMENT.get(network.dtype, 0.1) * scale


def push_forward(
    network: Network, inputs: Mapping[str, Tensor], cotangents_BSC: Tensor, columns: Mapping[str, Tensor]
) -> Tensor:
    """U (J V), (B, S, k) in float64, one column at a time. Fused attention has no forward mode, so it is made plain.

    Cost: about three forward passes for each column.
    """
    products, padded = [], _padded(network)
    if not next(iter(columns.values())).shape[1]:
        return cotangents_BSC.new_zeros(*cotangents_BSC.shape[:2], 0, dtype=CORE)
    for column in range(next(iter(columns.values())).shape[1]):
        flat = {name: tile_Pk[:, column].clone() for name, tile_Pk in columns.items()}
        tangent = {
            name: direction.to(network.weights[name]) for name, direction in network.layout.assemble(flat).items()
        }
        for name, (layer, *_) in padded.items():
            row = torch.tensor([_padding(layer)], device=tangent[name].device)
            tangent[name] = tangent[name].index_fill(0, row, 0.0)
        # Weights that are not chosen would otherwise have a graph for reverse mode recorded as well.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            pushed = torch.func.jvp(lambda weights: network(inputs, weights), (network.weights,), (tangent,))
        products.append(pushed[1])
    moved_BCk = torch.stack(products, dim=-1).to(CORE)
    return cotangents_BSC.to(CORE) @ moved_BCk
