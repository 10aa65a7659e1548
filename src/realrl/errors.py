"""The project's own exceptions: every one is a message for the user, shown without a traceback by the command line."""


class RealrlError(Exception):
    """Something the user can mend; the text says what was got, what is needed and what to do."""


class ConfigError(RealrlError):
    """A recipe or a command-line override that cannot be run as written."""


class ModelError(ConfigError, ValueError):
    """A model that cannot be computed exactly, or not as asked."""


class DataError(RealrlError):
    """A data set that cannot be read or has no usable row."""


class SamplingError(RealrlError):
    """An engine or a server that stopped giving responses; those that it gave are kept."""


class TrainingError(RealrlError):
    """A run that must stop: too many non-finite steps, or a checkpoint that cannot be used."""


class EngineError(RealrlError, ImportError):
    """An engine (TRL, verl) that is not installed, or whose version or inside is not one that was tested."""
