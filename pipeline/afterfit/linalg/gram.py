"""A Gram matrix summed slice by slice in a wider dtype than its rows."""

import torch
from torch import Tensor

ROWS = 1024
"""Of a block of the product: half of the products of two blocks are the others' transposes."""
SLICE_BYTES = 1 << 26
"""Of the widened slice of rows."""


def add_gram(left_Np: Tensor, right_Mp: Tensor, total_NM: Tensor) -> None:
    """Adds left right^T in the total's dtype; of a matrix with itself only the lower blocks, see `mirrored`.

    Cost: N M p multiplications, half of them where left is right.
    """
    is_same = left_Np is right_Mp
    num_rows = len(left_Np) if is_same else len(left_Np) + len(right_Mp)
    step = max(1, SLICE_BYTES // max(num_rows * total_NM.element_size(), 1))
    for first in range(0, left_Np.shape[1], step):
        left = left_Np[:, first : first + step].to(total_NM.dtype).contiguous()
        right = left if is_same else right_Mp[:, first : first + step].to(total_NM.dtype).contiguous()
        for top in range(0, len(left), ROWS):
            above = left[top : top + ROWS]
            for start in range(0, min(top + ROWS, len(right)) if is_same else len(right), ROWS):
                across = right[start : start + ROWS]
                into = total_NM[top : top + len(above), start : start + len(across)]
                torch.addmm(into, above, across.T, out=into)


def mirrored(total_NN: Tensor) -> Tensor:
    """The whole symmetric matrix from its lower triangle, in place."""
    for top in range(0, len(total_NN), ROWS):
        stop = min(top + ROWS, len(total_NN))
        total_NN[:top, top:stop] = total_NN[top:stop, :top].T
        corner = total_NN[top:stop, top:stop].tril()
        total_NN[top:stop, top:stop] = corner + corner.tril(-1).T
    return total_NN
