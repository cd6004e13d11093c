"""Damage to bytes that every maker of damaged files uses."""

from __future__ import annotations

import numpy as np

NASTY = (0, -1, 1, 2, 3, 7, 255, 32767, -32768, 65535, 1e-30, 1e-6, 0.5, 1e6, 1e30, -1e30, np.nan, np.inf, -np.inf)
"""Numbers that headers should not hold."""
WORDS = (
    "",
    "x",
    "../../outside",
    "/outside",
    "C:\\outside",
    "a\0b",
    "1e999",
    "NaN",
    "-1",
    "1\\2",
    "\\\\",
    "9" * 300,
    "ä",
)
"""Texts that headers should not hold."""


def flip(rng: np.random.Generator, content: bytearray) -> None:
    for at in rng.integers(len(content), size=int(rng.integers(1, 9))) if content else ():
        content[int(at)] = int(rng.integers(256))


def flip_header(rng: np.random.Generator, content: bytearray) -> None:
    for at in rng.integers(min(len(content), 560), size=int(rng.integers(1, 9))) if content else ():
        content[int(at)] = int(rng.integers(256))


def cut(rng: np.random.Generator, content: bytearray) -> None:
    del content[int(rng.integers(len(content) + 1)) :]


def insert(rng: np.random.Generator, content: bytearray) -> None:
    at = int(rng.integers(len(content) + 1))
    content[at:at] = rng.bytes(int(rng.integers(1, 2000)))
