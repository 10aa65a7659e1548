"""The project's own exceptions. The command line shows their message to the user, without a traceback."""


class RealrlError(Exception):
    """A problem that the user can solve; the message says what was given, what is needed and what to do."""


class ConfigError(RealrlError):
    """A recipe or a command-line override that cannot run as written."""


class ModelError(ConfigError, ValueError):
    """A model whose log-probabilities cannot be computed exactly, or not in the layout asked for."""


class DataError(RealrlError):
    """A data set that cannot be read or has no usable rows."""


class SamplingError(RealrlError):
    """An engine or a server stopped giving responses; the responses received before are kept."""


class TrainingError(RealrlError):
    """A run that must stop: too many non-finite updates, or an unusable checkpoint."""


class EngineError(RealrlError, ImportError):
    """An engine (TRL, verl) that is not installed, or whose version or internals were not tested with this package."""
