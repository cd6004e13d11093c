"""What the optional DICOM libraries need around them: to be there, and to say nothing of patients."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from glimpseg.errors import UsageError

_LIBRARIES = ("pydicom", "highdicom")
"""Both write values of headers into their log lines and warnings."""


def require_libraries() -> None:
    """Raises UsageError where the libraries for DICOM are not installed."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"DICOM needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'glimpseg[dicom]'"
        )


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Inside, the libraries neither warn nor log: what they would say may hold a name or an identifier."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    disabled = [logger.disabled for logger in loggers]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
            logger.setLevel(logging.CRITICAL + 1)  # reaches the loggers below these two
        try:
            yield
        finally:
            for logger, was, level in zip(loggers, disabled, levels, strict=True):
                logger.disabled = was
                logger.setLevel(level)
