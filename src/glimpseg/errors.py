"""The errors a caller can expect; the command line maps each to its exit code.

Every message says what was needed, what came, and what to do.
"""


class UsageError(ValueError):
    """The command or call itself is wrong: an unknown field, an output folder in use. Exit code 2."""


class InputError(ValueError):
    """An image, label map or study cannot be used as it is. Exit code 3."""


class ModelError(ValueError):
    """A checkpoint is absent, damaged, or of another method or version. Exit code 4."""


class OutputError(OSError):
    """A result could not be written; nothing half-written was left. Exit code 1."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss is not finite. Exit code 1."""


class Preempted(RuntimeError):
    """Training was asked to stop (SIGTERM) and has saved its state; `--resume` continues. Exit code 75."""
