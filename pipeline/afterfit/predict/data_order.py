"""Back to the data's order, from that of micro-batches, which take examples of like length together."""

from collections.abc import Mapping

import torch
from torch import Tensor


def in_data_order(whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors (n, ...) over the same examples, by ascending `index` (n,), which is one of them; copied if need be."""
    order_n = whole["index"].argsort()
    if torch.equal(order_n, torch.arange(len(order_n))):
        return dict(whole)
    return {family: values[order_n] for family, values in whole.items()}
