"""The typer application, and the options that come before every verb."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from glimpseg.errors import OutputError
from glimpseg.version import __version__

app = typer.Typer(
    help="Brain-tumour segmentation from whatever MRI sequences exist.\n\n"
    "Research software, not a medical device: not for diagnosis or treatment.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
log = logging.getLogger("glimpseg")


class _LogFile(logging.FileHandler):
    """Log file that ends, with one warning, where the disk takes no more. The work goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the file as it is."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        log.removeHandler(self)
        with suppress(OSError):  # closing writes once more
            self.close()
        log.warning("The log file %s ends here: it could not be written (%s).", self.baseFilename, error.strerror)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glimpseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Write the log to this file, too.")] = None,
) -> None:
    context.obj = {"quiet": quiet, "debug": debug}
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        try:
            handlers.append(_LogFile(log_file, encoding="utf-8"))
        except OSError as error:
            raise OutputError(error.errno, f"The log cannot be written to {log_file} ({error.strerror}).") from error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = handlers
