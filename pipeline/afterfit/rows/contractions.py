"""What is done to explicit rows, slice by slice; compiled where a recipe asks for it, never because it was quicker."""

from collections.abc import Callable, Hashable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from afterfit.errors import ConfigError


class Contractions:
    """Of rows (X, p) of one slice, one operation of torch after another. Each adds to what it is given."""

    def times(self, rows_Xp: Tensor, columns_pk: Tensor, into_Xk: Tensor) -> None:
        """Adds R V, whatever dtype the sum has."""
        into_Xk += (rows_Xp @ columns_pk).to(into_Xk.device)

    def transpose_times(self, rows_Xp: Tensor, weights_Xk: Tensor, into_pk: Tensor) -> None:
        """Adds R^T W."""
        torch.addmm(into_pk, rows_Xp.T, weights_Xk, out=into_pk)

    def squares(self, rows_Xp: Tensor, into_p: Tensor) -> None:
        """Adds the sum of R*R."""
        _squares(rows_Xp, into_p)


class Compiled(Contractions):
    """Made by `torch.compile`, once a process for each combination of sizes, about a second each.

    Free sizes would need fewer graphs, but what these do would depend on the sizes that came first, and so bits on
    where a worker began. R^T W stays as it is: one library call that adds in place, of which a compiled one would make
    two.

    Raises:
        ConfigError: if the machine has no C++ compiler, or torch cannot keep graphs apart.
    """

    def __init__(self) -> None:
        if "isolate_recompiles" not in signature(torch.compile).parameters:
            raise ConfigError(
                f"`rows.compiled` needs a newer torch than {torch.__version__}; install 2.13 or newer, or remove "
                "`rows.compiled`."
            )
        _check_compiler()

    def times(self, rows_Xp: Tensor, columns_pk: Tensor, into_Xk: Tensor) -> None:
        """Adds R V."""
        if into_Xk.device == rows_Xp.device:
            _run(_times, rows_Xp, columns_pk, into_Xk)
        else:
            super().times(rows_Xp, columns_pk, into_Xk)

    def squares(self, rows_Xp: Tensor, into_p: Tensor) -> None:
        """Adds the sum of R*R, in one reading of the rows."""
        _run(_squares, rows_Xp, into_p)


def contractions(*, compiled: bool) -> Contractions:
    """Those that a recipe asks for."""
    return Compiled() if compiled else Contractions()


def _times(rows_Xp: Tensor, columns_pk: Tensor, into_Xk: Tensor) -> None:
    into_Xk += rows_Xp @ columns_pk


def _squares(rows_Xp: Tensor, into_p: Tensor) -> None:
    into_p += rows_Xp.square().sum(dim=0)


def _run(function: Callable[..., None], *tensors: Tensor) -> None:
    kinds = tuple((one.shape, one.stride(), one.dtype, one.device) for one in tensors)
    _compiled(function, kinds)(*tensors)


@cache
def _compiled(function: Callable[..., None], kinds: Hashable) -> Callable[..., None]:  # noqa: ARG001
    """For tensors of these kinds, in all networks."""
    apart: Any = {"isolate_recompiles": True}  # not in torch's own types yet
    return torch.compile(function, dynamic=False, fullgraph=True, **apart)


@cache
def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "Compiled products with rows need a C++ compiler, and this machine has none; install g++, name another by "
            "the environment variable CXX, or remove `rows.compiled`."
        ) from error
