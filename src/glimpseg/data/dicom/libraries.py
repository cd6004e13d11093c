"""Optional DICOM libraries: check that they are installed, and silence them."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from glimpseg.errors import UsageError

_LIBRARIES = ("pydicom", "highdicom")
"""Required packages. Both write header values into their log lines and warnings."""


def require() -> None:
    """Check that the DICOM libraries are installed. Raises: UsageError if one is missing."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"DICOM needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'glimpseg[dicom]'"
        )


@contextmanager
def silenced() -> Iterator[None]:
    """Silence log lines and warnings of the DICOM libraries; they may hold a patient's name or identifier."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    disabled = [logger.disabled for logger in loggers]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
            logger.setLevel(logging.CRITICAL + 1)  # also silences their child loggers
        try:
            yield
        finally:
            for logger, was, level in zip(loggers, disabled, levels, strict=True):
                logger.disabled = was
                logger.setLevel(level)
