"""Bytes of the tensors that live at once, counted operation by operation."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Of what is made inside the block, and of what views in it are of; each storage once.

    Attributes:
        peak: the most bytes after any operation.
        most: the most storages of at least `large` bytes.
    """

    def __init__(self, large: int):
        super().__init__()
        self.large = large
        self.peak = 0
        self.most = 0
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count after the operation."""
        made = func(*args, **(kwargs or {}))
        self._made += [weakref.ref(leaf) for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        living = [(ref, tensor) for ref in self._made if (tensor := ref()) is not None]
        self._made = [ref for ref, _ in living]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in living}
        self.peak = max(self.peak, sum(storages.values()))
        self.most = max(self.most, sum(size >= self.large for size in storages.values()))
        return made
