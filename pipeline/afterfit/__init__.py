"""Bayesian uncertainty for trained networks: fit a posterior after the fit, on a laptop or a Ray cluster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afterfit.methods.ella import Ella
    from afterfit.methods.ggn_nystrom import GgnNystrom
    from afterfit.methods.hessian_free import HessianFree
    from afterfit.methods.implicit_hessian import ImplicitHessian
    from afterfit.methods.null_space import NullSpace
    from afterfit.methods.slang import Slang
    from afterfit.methods.variational_dropout import VariationalDropout
    from afterfit.plan.api import Posterior, fit, load

__version__ = "0.1.0"
__all__ = [
    "Ella",
    "GgnNystrom",
    "HessianFree",
    "ImplicitHessian",
    "NullSpace",
    "Posterior",
    "Slang",
    "VariationalDropout",
    "__version__",
    "fit",
    "load",
]

_HOME = {
    "Ella": "afterfit.methods.ella",
    "GgnNystrom": "afterfit.methods.ggn_nystrom",
    "HessianFree": "afterfit.methods.hessian_free",
    "ImplicitHessian": "afterfit.methods.implicit_hessian",
    "NullSpace": "afterfit.methods.null_space",
    "Posterior": "afterfit.plan.api",
    "Slang": "afterfit.methods.slang",
    "VariationalDropout": "afterfit.methods.variational_dropout",
    "fit": "afterfit.plan.api",
    "load": "afterfit.plan.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that `import afterfit` alone does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'afterfit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
