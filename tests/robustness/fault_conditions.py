"""Circumstances in which `glimpseg` has to work, or to end in one line; rows of `fault_table.py`.

Each runs the command line for real, in a folder of its own.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_files import WORDS, Scans, Word, command, plain, segment
from workbench import PATIENCE_S, Done


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Scans, model and environment of a row."""

    scans: Scans
    model: Path
    environment: Mapping[str, str] = field(default_factory=lambda: {**os.environ, "OMP_NUM_THREADS": "1"})

    def words(self, place: Path, output: Path, *more: Word) -> list[str]:
        """The command for a good study."""
        return command(segment(plain(place, self.scans), *more), self.model, output)

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """The command line in a process of its own."""
        options.setdefault("env", dict(self.environment))
        options.setdefault("stdout", subprocess.PIPE)
        return subprocess.Popen([sys.executable, "-m", "glimpseg", *words], stderr=subprocess.PIPE, **options)

    def run(self, words: Sequence[str], **options: Any) -> Done:
        """The same, waited for."""
        return done(self.start(words, **options))


def done(process: subprocess.Popen[bytes]) -> Done:
    """Waits for a process."""
    _, said = process.communicate(timeout=PATIENCE_S)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as a shell has it
    return Done(code, said.decode("utf-8", "replace"))


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One row: what is amiss, and how a run in it has to end."""

    name: str
    run: Callable[[Path, Tools], tuple[str, Done]]
    """Gives the command in words, and how it ended. Raises: AssertionError where files are not as they should be."""
    code: int
    says: str = ""
    """The whole message of a run that fails, in the form of `Fault.says`; of its names only `place`."""


def shown(words: Sequence[str]) -> str:
    """A command as one would type it."""
    return "glimpseg " + " ".join(words)


def nothing_left(place: Path, output: str = "out") -> None:
    """No output, whole or half, and no temporary file."""
    left = [path.name for path in place.iterdir() if path.name == output or path.name.startswith(f".{output}")]
    assert not left, f"left behind: {left}"


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[None]:
    """A file system of its own on `place`. Raises: Skipped where this process may not mount one."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
    if mounted.returncode:
        raise Skipped("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


class Skipped(Exception):
    """This row cannot be run here; the message says why."""


# Places to write


def _read_only(place: Path, tools: Tools) -> tuple[str, Done]:
    with small_disk(place / "disk", "size=1m,ro"):
        words = tools.words(place, place / "disk" / "out")
        ended = tools.run(words)
        assert not list((place / "disk").iterdir())
    return shown(words), ended


def _below_a_file(place: Path, tools: Tools) -> tuple[str, Done]:
    (place / "file").write_text("mine")
    words = tools.words(place, place / "file" / "out")
    return shown(words), tools.run(words)


def _full_disk(place: Path, tools: Tools) -> tuple[str, Done]:
    with small_disk(place / "disk", "size=60k"):
        words = tools.words(place, place / "disk" / "out", "--probabilities")
        ended = tools.run(words)
        nothing_left(place / "disk")
    return shown(words), ended


def _quota(place: Path, tools: Tools) -> tuple[str, Done]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    words = tools.words(place, place / "out", "--probabilities")
    environment = {**tools.environment, "MPLCONFIGDIR": str(place / "matplotlib")}
    ended = tools.run(words, preexec_fn=limit, env=environment)
    nothing_left(place)
    return f"ulimit -f 20; {shown(words)}", ended


def _full_disk_spares_the_old(place: Path, tools: Tools) -> tuple[str, Done]:
    with small_disk(place / "disk", "size=300k"):
        words = tools.words(place, place / "disk" / "out")
        first = tools.run(words)
        assert first.code == 0, first.said
        before = {path.name: path.read_bytes() for path in (place / "disk" / "out").iterdir()}
        (place / "disk" / "filler").write_bytes(bytes(os.statvfs(place / "disk").f_bavail * 4096 - 8192))
        words += ["--overwrite"]
        ended = tools.run(words)
        assert {path.name: path.read_bytes() for path in (place / "disk" / "out").iterdir()} == before
        assert sorted(path.name for path in (place / "disk").iterdir()) == ["filler", "out"]
    return shown(words), ended


def _in_use(place: Path, tools: Tools) -> tuple[str, Done]:
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("mine")
    words = tools.words(place, place / "out")
    ended = tools.run(words)
    assert [path.name for path in (place / "out").iterdir()] == ["mine.txt"]
    return shown(words), ended


def _not_ours(place: Path, tools: Tools) -> tuple[str, Done]:
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("mine")
    words = [*tools.words(place, place / "out"), "--overwrite"]
    ended = tools.run(words)
    assert [path.name for path in (place / "out").iterdir()] == ["mine.txt"]
    return shown(words), ended


def _two_runs(place: Path, tools: Tools) -> tuple[str, Done]:
    words = tools.words(place, place / "out")
    both = [tools.start(words) for _ in range(2)]
    ends = sorted((done(process) for process in both), key=lambda end: end.code)
    assert ends[0].code == 0, ends[0].said
    assert (place / "out" / "seg.nii.gz").is_file()
    assert not list(place.glob(".out*"))
    return f"{shown(words)} (twice at once; the other one ended with 0)", ends[1]


# Signals


def _until(process: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not there():
        assert process.poll() is None, "it had ended before"
        assert time.monotonic() < begun + PATIENCE_S
        time.sleep(0.001)


def _term_while_writing(place: Path, tools: Tools) -> tuple[str, Done]:
    words = tools.words(place, place / "out", "--probabilities")
    process = tools.start(words)
    _until(process, lambda: bool(list(place.glob(".out.tmp-*/seg.nii.gz"))))
    process.send_signal(signal.SIGTERM)
    ended = done(process)
    nothing_left(place)
    return f"{shown(words)} (SIGTERM while it writes)", ended


def _term_while_working(place: Path, tools: Tools) -> tuple[str, Done]:
    words = tools.words(place, place / "out")
    process = tools.start(words)
    _until(process, lambda: b"libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_bytes())
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    ended = done(process)
    nothing_left(place)
    return f"{shown(words)} (SIGTERM before it writes)", ended


def _killed_and_again(place: Path, tools: Tools) -> tuple[str, Done]:
    words = tools.words(place, place / "out", "--probabilities")
    process = tools.start(words)
    _until(process, lambda: bool(list(place.glob(".out.tmp-*/seg.nii.gz"))))
    process.kill()
    done(process)
    assert not (place / "out").exists()
    ended = tools.run(words)
    assert (place / "out" / "seg.nii.gz").is_file()
    return f"{shown(words)} (again, after kill -9 while it wrote)", ended


# Surroundings


def _spaces(place: Path, tools: Tools) -> tuple[str, Done]:
    place = place / "a place with 'quotes' and $words"
    place.mkdir()
    words = tools.words(place, place / "the result")
    return shown(words), tools.run(words)


def _not_utf8(place: Path, tools: Tools) -> tuple[str, Done]:
    odd = Path(os.fsdecode(os.fsencode(place) + b"/caf\xe9"))
    odd.mkdir()
    words = tools.words(odd, odd / "out")
    ended = tools.run(words)
    assert (odd / "out" / "seg.nii.gz").is_file()
    return shown(words), ended


def _not_utf8_refused(place: Path, tools: Tools) -> tuple[str, Done]:
    odd = Path(os.fsdecode(os.fsencode(place) + b"/caf\xe9.nii.gz"))
    odd.write_text("no image")
    words = command(segment(odd), tools.model, place / "out")
    return shown(words), tools.run(words)


def _plain_locale(place: Path, tools: Tools) -> tuple[str, Done]:
    odd = place / "Müller"
    odd.mkdir()
    words = tools.words(odd, odd / "out")
    environment = {**tools.environment, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return f"LC_ALL=C {shown(words)}", tools.run(words, env=environment)


def _homeless(place: Path, tools: Tools) -> tuple[str, Done]:
    words = tools.words(place, place / "out")
    environment = {name: value for name, value in tools.environment.items() if name not in ("HOME", "MPLCONFIGDIR")}
    return f"env -u HOME {shown(words)}", tools.run(words, env=environment)


def _home_nowhere(place: Path, tools: Tools) -> tuple[str, Done]:
    words = tools.words(place, place / "out")
    environment = {**tools.environment, "HOME": "/proc/nowhere", "MPLCONFIGDIR": "", "XDG_CACHE_HOME": "/proc/nowhere"}
    return f"HOME=/proc/nowhere {shown(words)}", tools.run(words, env=environment)


def _little_memory(place: Path, tools: Tools) -> tuple[str, Done]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    words = tools.words(place, place / "out")
    return f"ulimit -n 64; {shown(words)}", tools.run(words, preexec_fn=limit)


def _full_stdout(place: Path, tools: Tools) -> tuple[str, Done]:
    words = tools.words(place, place / "out")
    with open("/dev/full", "w") as full:
        ended = tools.run(words, stdout=full)
    assert (place / "out" / "seg.nii.gz").is_file()
    return f"{shown(words)} > /dev/full", ended


def _read_only_cache(place: Path, tools: Tools) -> tuple[str, Done]:
    folder = place / "data" / "S1"
    folder.mkdir(parents=True)
    plain(folder, tools.scans, "S1-t1c.nii.gz")
    words = ["-q", "prepare", str(place / "data"), "--recipe", "unet/phantom", "-o", str(place / "disk" / "cache")]
    with small_disk(place / "disk", "size=2m"):
        first = tools.run(words)
        assert first.code == 0, first.said
        subprocess.run(["mount", "-o", "remount,ro", place / "disk"], check=True)
        ended = tools.run(words)
    return f"{shown(words)} (again, the disk now read-only)", ended


_NOT_WRITTEN = (
    f"{{}} could not be written ({WORDS}). Nothing was left half-written. Free some space or choose another place with "
    "-o"
)
_IN_USE = (
    "The output folder {place}/out already holds files; nothing was written. Name another folder with -o, or pass "
    "--overwrite to replace it."
)
_STOPPED = "stopped by SIGTERM; nothing half-written was left."
_HALF = f"out/{WORDS}"


CONDITIONS = (
    Condition(
        name="output on a read-only disk", run=_read_only, code=1, says=_NOT_WRITTEN.replace("{}", "{place}/disk/out")
    ),
    Condition(
        name="output below a file", run=_below_a_file, code=1, says=_NOT_WRITTEN.replace("{}", "{place}/file/out")
    ),
    Condition(
        name="disk full (tmpfs of 60 kB)", run=_full_disk, code=1,
        says=_NOT_WRITTEN.replace("{}", f"{{place}}/disk/{_HALF}"),
    ),
    Condition(
        name="disk full while a result is replaced", run=_full_disk_spares_the_old, code=1,
        says=_NOT_WRITTEN.replace("{}", f"{{place}}/disk/{_HALF}"),
    ),
    Condition(
        name="limit on the size of files", run=_quota, code=1, says=_NOT_WRITTEN.replace("{}", f"{{place}}/{_HALF}")
    ),
    Condition(name="output folder in use", run=_in_use, code=2, says=_IN_USE),
    Condition(
        name="--overwrite on a folder of somebody else", run=_not_ours, code=2,
        says="--overwrite replaces only a folder that glimpseg made, and {place}/out holds files but no run.json; "
        "nothing was written. Name another folder with -o, or empty this one yourself.",
    ),
    Condition(name="two runs into one folder", run=_two_runs, code=2, says=_IN_USE),
    Condition(name="SIGTERM while the result is written", run=_term_while_writing, code=143, says=_STOPPED),
    Condition(name="SIGTERM before", run=_term_while_working, code=143, says=_STOPPED),
    Condition(name="kill -9, and again", run=_killed_and_again, code=0),
    Condition(name="spaces, quotes and $ in paths", run=_spaces, code=0),
    Condition(name="a path that is no UTF-8", run=_not_utf8, code=0),
    Condition(
        name="a damaged file under such a path", run=_not_utf8_refused, code=3,
        says=f"{{place}}/caf\\udce9.nii.gz cannot be read as NIfTI ({WORDS}). Export it again.",
    ),
    Condition(name="LC_ALL=C and an umlaut in the path", run=_plain_locale, code=0),
    Condition(name="no HOME", run=_homeless, code=0),
    Condition(name="a HOME that is not there", run=_home_nowhere, code=0),
    Condition(name="64 open files at most", run=_little_memory, code=0),
    Condition(
        name="standard output on a full disk", run=_full_stdout, code=1,
        says=f"unexpected error (OSError: {WORDS}). Add --debug after glimpseg for the trace.",
    ),
    Condition(name="read-only cache that is complete", run=_read_only_cache, code=0),
)  # fmt: skip
