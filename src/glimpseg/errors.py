"""Errors that a caller can expect; the command line maps each to an exit code.

Every message says what was needed, what was found, and what to do. It may quote a damaged file. What a terminal would
obey (control characters) is therefore shown as `\\x1b`, and a text of thousands of characters is shortened.
"""

LONGEST = 2000
"""Most characters of a message."""


def readable(text: str) -> str:
    """Return a text for a terminal: characters that cannot be printed are escaped, and a long text is shortened.

    Line ends stay, and so do bytes of file names that are no UTF-8 (surrogates).
    """
    shown = "".join(c if c.isprintable() or c == "\n" or "\udc80" <= c <= "\udcff" else _escaped(c) for c in text)
    if len(shown) <= LONGEST:
        return shown
    half = LONGEST // 2 - 50
    return f"{shown[:half]} [... {len(shown) - 2 * half:,} characters ...] {shown[-half:]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Readable(Exception):
    """Error whose text is `readable`."""

    def __str__(self) -> str:
        return readable(super().__str__())


class UsageError(_Readable, ValueError):
    """Wrong command or call, such as an unknown field or an output folder in use. Exit code 2."""


class InputError(_Readable, ValueError):
    """Image, label map or study that cannot be used as it is. Exit code 3."""


class ModelError(_Readable, ValueError):
    """Model that is absent, damaged, or of another method or version. Exit code 4."""


class OutputError(OSError):
    """Result that could not be written; no partial file was left. Exit code 1."""


class TrainingError(RuntimeError):
    """Training that cannot go on, for example because a loss is not finite. Exit code 1."""


class Preempted(RuntimeError):
    """Training or batch that SIGTERM stopped; its state so far is saved, and `--resume` continues. Exit code 75."""
