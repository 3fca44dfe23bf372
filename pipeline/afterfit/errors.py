"""Every error that a user may meet: one sentence with the remedy, and the exit code of the command."""


class AfterfitError(Exception):
    """Root of the tree. `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(AfterfitError, ValueError):
    """The configuration, or an argument, asks for something that cannot be."""

    exit_code = 2


class DataError(AfterfitError, ValueError):
    """The data do not fit the network or the likelihood: missing, empty, out of range, not finite."""

    exit_code = 2


class NetworkError(AfterfitError, ValueError):
    """The network cannot be used as it is: not finite, in train mode, weights that do not load."""

    exit_code = 2


class ArtifactError(AfterfitError):
    """Something in the store is damaged, or was made by another layout or version."""


class StoreError(AfterfitError):
    """The store cannot be written or reached: full disk, no permission, unknown scheme."""


class ResourceError(AfterfitError):
    """The work does not fit the memory or the devices that were given."""


class OutOfMemoryError(ResourceError):
    """A stage asks, or asked, for more memory than there is.

    Attributes:
        stage: its name, where it is known.
        has_gb: memory of the machine or the GPU that it ran out on, where it is known.
        on_gpu: which of these it was.
        is_counted: whether it was told by counting, before anything was tried.
    """

    def __init__(
        self,
        sentence: str,
        *,
        stage: str = "",
        has_gb: float | None = None,
        on_gpu: bool = False,
        is_counted: bool = False,
    ):
        super().__init__(sentence)
        self.stage = stage
        self.has_gb = has_gb
        self.on_gpu = on_gpu
        self.is_counted = is_counted


class NumericalError(AfterfitError):
    """A factorisation or an optimisation broke down."""


class RankError(NumericalError):
    """More directions were asked for than the numbers contain."""


class EngineError(AfterfitError):
    """Workers could not be started, or were lost for good."""
