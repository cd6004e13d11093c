"""Output folders of work that can be stopped and resumed.

The settings of the work are written first, into one file of the folder. Whoever opens the folder later learns from that
file if the work in it is the same.

    EVALUATION = Resumable(noun="evaluation", file="evaluation.json", may_differ=("computed",), replaceable=True)
    kept = EVALUATION.open(folder, settings, resume=resume, overwrite=overwrite)
    log.info("A new evaluation." if kept is None else "The evaluation goes on.")
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from glimpseg.errors import InputError, UsageError
from glimpseg.runtime.atomic import folder_lock, refuse_if_used, write_text_once
from glimpseg.runtime.documents import read_json, read_yaml

LONGEST_VALUE = 60
"""Characters of a setting's value in a message."""


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """Kind of work that fills an output folder and can be resumed there."""

    noun: str
    """The work as messages name it: `run`, `batch`, `evaluation`."""
    file: str
    """Name of the settings file, JSON or YAML by its suffix. Also the mark of a folder that may be replaced."""
    may_differ: Collection[str] = ()
    """Names of the top-level settings that may have another value when the work is resumed."""
    replaceable: bool = False
    """True if the command has an option --overwrite, which messages then mention."""
    locks: Collection[str] = (".lock",)
    """Patterns of the lock files (`folder_lock`), in the output folder, that those who work in it hold."""
    among_files: bool = False
    """True if a new work may begin in a folder that holds other files, but no settings file."""

    def open(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        joins: bool = False,
        kept: Mapping[str, Any] | None = None,
    ) -> Mapping[str, Any] | None:
        """Make the output folder of a work with these settings, or check that it may go on there.

        Several processes may open the same folder at the same time with the same settings.

        Args:
            folder: The output folder; need not exist.
            settings: Values that JSON can hold. They are written before anything else.
            resume: Go on with the work in the folder, if there is one. Takes precedence over `overwrite`.
            overwrite: Set a work in the folder aside. Call `discard_replaced` or `restore_replaced` later.
            joins: Go on in a folder with the same settings also without `resume`, for one of several shards.
            kept: The settings that the work was begun with. Default: as read from the settings file.

        Returns:
            The settings that the work was begun with; None for a new work.

        Raises:
            UsageError: The folder is a file; or it holds files of something else (see `among_files`); or this work,
                without `resume`, `overwrite` or `joins`; or a work with other settings, which the message names; or,
                with `overwrite`, another process works in it.
            InputError: The settings file is damaged.
            OutputError: The settings file cannot be written.
        """
        if not folder.exists():  # a process that was to replace a work was killed before it began its own
            restore_replaced(folder)
        if not overwrite or resume:
            return self._open(folder, settings, resume=resume or joins, kept=kept)
        self._set_aside(folder)
        try:
            return self._open(folder, settings, resume=joins, kept=kept)
        except BaseException:
            restore_replaced(folder)
            raise

    def _open(
        self, folder: Path, settings: Mapping[str, Any], *, resume: bool, kept: Mapping[str, Any] | None
    ) -> Mapping[str, Any] | None:
        # Looked at first: another process that begins at this moment writes its settings before anything else.
        used = folder.is_file() or (folder.is_dir() and any(not self._is_unfinished(path) for path in folder.iterdir()))
        kept = self.read(folder) if kept is None else kept
        if kept is None:
            if used and (folder.is_file() or not self.among_files):
                refuse_if_used(folder)
        elif not resume:
            replace = " --overwrite to replace it," if self.replaceable else ""
            raise UsageError(
                f"{folder} already holds {self._article} {self.noun}. Add --resume to go on with it,{replace} or name "
                "another folder with -o."
            )
        else:
            self._refuse_other(folder, kept, settings)
        if kept is None or not (folder / self.file).exists():
            first = write_text_once(folder / self.file, self._text(settings))
            if kept is None and not first:  # another process was faster: its settings count
                return self._open(folder, settings, resume=resume, kept=self.read(folder))
        return kept

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Return the content of the settings file, None where there is no such file. Raises: InputError if damaged."""
        path = folder / self.file
        if not path.is_file():
            return None
        try:
            return dict(read_yaml(path) if path.suffix == ".yaml" else read_json(path, finite=False))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}). Name another folder with -o.") from error

    def _text(self, settings: Mapping[str, Any]) -> str:
        if self.file.endswith(".yaml"):
            return str(yaml.safe_dump(dict(settings), sort_keys=False))
        return json.dumps(settings, indent=1) + "\n"

    def _refuse_other(self, folder: Path, kept: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        fixed = {name: value for name, value in settings.items() if name not in self.may_differ}
        values = "; ".join(differences({name: kept.get(name) for name in fixed}, json.loads(json.dumps(fixed))))
        if values:
            raise UsageError(
                f"The {self.noun} in {folder} was begun otherwise ({values}). Resume it as it was begun, or name "
                "another folder with -o."
            )

    def _set_aside(self, folder: Path) -> None:
        refuse_if_used(folder, overwrite=True, mark=self.file)
        if folder.is_dir():
            with ExitStack() as held:  # no other process works in it
                for lock in [lock for pattern in self.locks for lock in sorted(folder.glob(pattern))]:
                    held.enter_context(folder_lock(lock.parent))
                if replaced(folder).is_dir():  # `folder` is a replacement that was not finished: keep what it replaces
                    shutil.rmtree(folder)
                else:
                    folder.rename(replaced(folder))

    def _is_unfinished(self, path: Path) -> bool:
        return path.name.startswith(f".{self.file}.tmp-")

    @property
    def _article(self) -> str:
        return "an" if self.noun[0] in "aeiou" else "a"


def replaced(folder: Path) -> Path:
    """Return the path at which `overwrite` sets the work in a folder aside: `.NAME.old` beside the folder."""
    return folder.with_name(f".{folder.name}.old")


def discard_replaced(folder: Path) -> None:
    """Remove the work that `overwrite` set aside, if there is one."""
    if replaced(folder).is_dir():
        # Renamed first: a kill then leaves no half of it under a name that is restored.
        gone = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        os.replace(replaced(folder), gone)
        shutil.rmtree(gone, ignore_errors=True)


def restore_replaced(folder: Path) -> None:
    """Put the work that `overwrite` set aside back, if there is one. The new work in the folder is deleted."""
    if replaced(folder).is_dir():
        if folder.is_dir():
            shutil.rmtree(folder)
        replaced(folder).rename(folder)


def differences(kept: Mapping[str, Any], settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield `name: old, now new` for each setting that differs; nested names are joined by dots.

    A setting that one of both lacks counts as null there. Values are JSON, cut to `LONGEST_VALUE` characters.
    """
    for name in [*kept, *(name for name in settings if name not in kept)]:
        old, new = kept.get(name), settings.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
