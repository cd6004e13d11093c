"""Errors that a caller can expect; the command line maps each to an exit code.

Every message says what was needed, what was found, and what to do.
"""


class UsageError(ValueError):
    """Wrong command or call, such as an unknown field or an output folder in use. Exit code 2."""


class InputError(ValueError):
    """Image, label map or study that cannot be used as it is. Exit code 3."""


class ModelError(ValueError):
    """Model that is absent, damaged, or of another method or version. Exit code 4."""


class OutputError(OSError):
    """Result that could not be written; no partial file was left. Exit code 1."""


class TrainingError(RuntimeError):
    """Training that cannot go on, for example because a loss is not finite. Exit code 1."""


class Preempted(RuntimeError):
    """Training or batch that SIGTERM stopped; its state so far is saved, and `--resume` continues. Exit code 75."""
