"""The command line: one verb, one function. Results go to stdout, progress and warnings to stderr."""

from glimpseg.cli.entry import app, main

__all__ = ["app", "main"]
