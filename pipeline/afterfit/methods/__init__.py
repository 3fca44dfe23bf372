"""Every method by the name that a configuration gives it."""

from collections.abc import Mapping
from typing import Final

METHODS: Final[Mapping[str, str]] = {
    "ella": "afterfit.methods.ella:Ella",
    "ggn_nystrom": "afterfit.methods.ggn_nystrom:GgnNystrom",
    "hessian_free": "afterfit.methods.hessian_free:HessianFree",
    "implicit_hessian": "afterfit.methods.implicit_hessian:ImplicitHessian",
    "null_space": "afterfit.methods.null_space:NullSpace",
    "slang": "afterfit.methods.slang:Slang",
    "variational_dropout": "afterfit.methods.variational_dropout:VariationalDropout",
}
"""Name -> module and class; imported when a configuration asks for it, so that the table costs nothing."""
