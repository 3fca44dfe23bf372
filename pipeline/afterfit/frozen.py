"""The base of every record that a user writes in YAML or passes from Python."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, strict, no unknown keys; the text under a field is its description in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True)
