"""A stage: what it reads, what it computes, and the key that names its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from afterfit.network.workbench import Recipe
from afterfit.store.keys import content_key


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a plan. The key hashes what changes the numbers, and nothing else."""

    name: str
    recipe: Recipe
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)  # role for the recipe -> stage
    data: Mapping[str, Any] = field(default_factory=dict)  # role -> identity and shard count of a data set
    context: Mapping[str, Any] = field(default_factory=dict)  # what else fixes the bits: network, layout, memory
    roles: Mapping[str, str] = field(default_factory=dict)  # role for the recipe -> role in the request, if another

    @cached_property
    def key(self) -> str:
        """16 hex digits."""
        upstream = {role: stage.key for role, stage in self.inputs.items()}
        return content_key(self.recipe, upstream, data=self.data, context=self.context)

    @property
    def place(self) -> str:
        """Where its artifact lies in the store."""
        return f"{self.name}/{self.key}"
