"""Layers that run again in the backward pass, in the way that hides their weights from `torch.autograd.grad`."""

from torch import Tensor

from afterfit.errors import NetworkError

REENTRANT = "CheckpointFunctionBackward"
"""What torch calls the node of such layers."""


def refuse_reentrant(loss: Tensor) -> None:
    """Their weights would get no gradient, and nobody would say so.

    Args:
        loss: with its graph, which is walked once.

    Raises:
        NetworkError: with the remedy.
    """
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name() == REENTRANT:
            raise NetworkError(
                "The network has layers that are checkpointed with `use_reentrant=True`, whose weights would not be "
                "trained; give `use_reentrant=False` (in transformers: `gradient_checkpointing_kwargs`), or none."
            )
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
