"""Entry point of the command line: all verbs, and the exit code of each error."""

from __future__ import annotations

import os
import sys

# isort: off  (the order of --help)
from glimpseg.cli import about, export, evaluation, segment, cluster, studies, training  # noqa: F401

# isort: on
from glimpseg.cli.app import app
from glimpseg.cli.malloc import keep_freed_memory
from glimpseg.errors import InputError, ModelError, OutputError, Preempted, TrainingError, UsageError
from glimpseg.runtime.preemption import install_exit_handler

EXIT_CODES: dict[type[Exception], int] = {
    UsageError: 2,
    InputError: 3,
    ModelError: 4,
    OutputError: 1,
    TrainingError: 1,
    Preempted: 75,
}
"""Exit codes of errors: 1 output not writable or training failed, 2 wrong usage, 3 input unusable, 4 model missing or
not matching, 75 stopped by SIGTERM with its state saved. Besides: 0 done, 1 unexpected error, 130 interrupted."""


def main() -> None:
    """Run the command line. An error prints one message and sets its exit code; with `--debug` it is raised.

    Errors that are not in `EXIT_CODES` have exit code 1.
    """
    # Threads that wait for each other spin by default: beside another busy process a training step then took
    # six times as long (5.6 s against 0.9 s on two cores). Read when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    # Training and batches install a handler of their own, and stop later.
    install_exit_handler("glimpseg: stopped by SIGTERM; nothing half-written was left.")
    try:
        app()
    except tuple(EXIT_CODES) as error:
        if "--debug" in sys.argv:
            raise
        text = error.strerror if isinstance(error, OutputError) and error.strerror else str(error)
        print(f"glimpseg: {text}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CODES[type(error)])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        message = f"{type(error).__name__}: {error}"
        print(f"glimpseg: unexpected error ({message}). Add --debug after glimpseg for the trace.", file=sys.stderr)  # noqa: T201
        sys.exit(1)
