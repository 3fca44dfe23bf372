"""Every method by the name that a configuration gives it."""

from collections.abc import Mapping
from typing import Final

METHODS: Final[Mapping[str, str]] = {
    "ella": "afterfit.methods.ella:Ella",
    "ggn_nystrom": "afterfit.methods.ggn_nystrom:GgnNystrom",
}
"""Name -> module and class; imported when a configuration asks for it, so that the table costs nothing."""
