"""One categorical variable by its logits: what the likelihood of an example's class and that of tokens share.

Shapes: B variables (examples, or tokens), C classes, S labels of one variable. Nothing is computed across variables.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from afterfit.precision import state_dtype


def wide_log_softmax(outputs_BC: Tensor) -> Tensor:
    """Log probabilities, (B, C); of logits in 16 bits in float32."""
    return log_softmax(outputs_BC.to(state_dtype(outputs_BC.dtype)), dim=1)


def labels_at(p_BC: Tensor, uniforms_BS: Tensor) -> Tensor:
    """Labels drawn by inversion, (B, S): the class at which the cumulative probability passes a uniform number."""
    cumulative_BC = p_BC.double().cumsum(dim=1)
    level_BS = uniforms_BS * cumulative_BC[:, -1:]
    return torch.searchsorted(cumulative_BC, level_BS, right=True).clamp(max=p_BC.shape[1] - 1)


def one_hot_minus(p_BC: Tensor, labels_BS: Tensor) -> Tensor:
    """e_label - p for each label, (B, S, C); the label's entry sums the others, so nothing cancels."""
    minus_BSC = -p_BC[:, None].repeat(1, labels_BS.shape[1], 1).scatter(2, labels_BS[..., None], 0.0)
    return minus_BSC.scatter(2, labels_BS[..., None], -minus_BSC.sum(dim=2, keepdim=True))
