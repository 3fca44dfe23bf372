"""In what arithmetic rows of the Jacobian are made, besides the network's own dtype. Imports no torch."""

from typing import Any, Literal, Self

from pydantic import ValidationError

from afterfit.errors import ConfigError
from afterfit.frozen import Frozen


class Arithmetic(Frozen):
    """Of forward and backward passes and of products with rows. What is set here is part of the keys.

    Rows are contracted in float32 and small cores in float64 all the same.
    """

    autocast: Literal["bfloat16", "float16"] | None = None
    """Forward passes, and backward passes to the activations, in mixed precision as `torch.autocast` does them; the
    network's own dtype by default. For networks in float32; float16 has the finer steps, bfloat16 the wider range."""

    compiled: bool = False
    """Whether `torch.compile` makes the products with rows. It needs a C++ compiler, and seconds for each kind of
    product on each worker; on a CPU it gained nothing where it was measured."""

    @classmethod
    def of(cls, autocast: str | None, compiled: bool) -> Self:
        """The same from arguments.

        Raises:
            ConfigError: for an unknown type.
        """
        try:
            return cls.model_validate({"autocast": autocast, "compiled": compiled})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{first['loc'][0]}: {first['msg'][:1].lower()}{first['msg'][1:]}.") from error

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that are not as usual: all that keys hash, so that those of plain runs stay."""
        return self.model_dump(mode="json", exclude_defaults=True)


PLAIN = Arithmetic()
"""The network's own, uncompiled."""
