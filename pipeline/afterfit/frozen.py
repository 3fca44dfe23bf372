"""The base of every record that a user writes in YAML or passes from Python."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Frozen(BaseModel):
    """Immutable, strict, no unknown keys; the text under a field is its description in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True)
