"""What can be wrong with a user's text, configuration or disk.

    ModelError
    ├── ConfigError       a value outside its range, an unknown name
    ├── CorpusError       text that is missing, empty, too short or not UTF-8
    ├── CausalityError    a network in which a position can see its own future
    ├── NetworkError      a network of the user's own that cannot be imported, built or used
    └── CheckpointError   a checkpoint that cannot be written, read or continued
        └── OtherDeviceError   a sound one that another kind of device can continue

Every message is one line: the rule, the value received, the next step.
"""


class ModelError(ValueError):
    """Base of all errors that this package raises on purpose."""


class ConfigError(ModelError):
    """A configuration value is outside its range or has an unknown name."""


class CorpusError(ModelError):
    """A corpus is missing, empty, too short or not UTF-8."""


class CausalityError(ModelError):
    """A network lets a position see its own future."""


class NetworkError(ModelError):
    """A network of the user's own cannot be imported, built or used."""


class CheckpointError(ModelError):
    """A checkpoint cannot be written, read or continued."""


class OtherDeviceError(CheckpointError):
    """A checkpoint is sound, but only another kind of device can continue it."""


def class_and_message(error: BaseException, characters: int = 200) -> str:
    """The class of an error that is not ours, and its message on one line, cut to so many characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:characters]}"
