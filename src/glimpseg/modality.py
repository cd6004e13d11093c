"""MRI modalities (sequences), and subsets of them.

The order of declaration is the channel order everywhere; it is written nowhere else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING

from glimpseg.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor


class Modality(enum.Flag, boundary=enum.STRICT):
    """One MRI modality, or a set of modalities.

    >>> subset = Modality.FLAIR | Modality.T1C
    >>> Modality.T1C in subset
    True
    >>> [modality.name for modality in subset]  # in channel order
    ['T1C', 'FLAIR']
    >>> len(subset), subset.key, subset.title
    (2, 't1c+flair', 'T1c + FLAIR')
    """

    T1 = enum.auto()
    T1C = enum.auto()
    T2 = enum.auto()
    FLAIR = enum.auto()

    @property
    def key(self) -> str:
        """Name in files and on the command line, such as `t1c+flair`; `none` for the empty set."""
        return "+".join(str(modality.name).lower() for modality in self) or "none"

    @property
    def title(self) -> str:
        """Name in reports and figures, such as `T1c + FLAIR`; `none` for the empty set."""
        return " + ".join(_TITLES[modality] for modality in self) or "none"


ALL = Modality.T1 | Modality.T1C | Modality.T2 | Modality.FLAIR

_TITLES = {Modality.T1: "T1", Modality.T1C: "T1c", Modality.T2: "T2", Modality.FLAIR: "FLAIR"}

ALIASES: dict[str, Modality] = {
    **dict.fromkeys(("t1", "t1n", "t1w"), Modality.T1),
    **dict.fromkeys(("t1c", "t1ce", "t1gd"), Modality.T1C),
    **dict.fromkeys(("t2", "t2w"), Modality.T2),
    **dict.fromkeys(("flair", "t2f", "fla"), Modality.FLAIR),
}
"""Modality of each spelling that releases' file names and common tools use (lower case)."""


def parse(text: str) -> Modality:
    """Parse the name of a subset, such as `t1c+flair`, `T1ce, FLAIR` or `all`.

    Words are separated by `+` or `,`; case is ignored.

    Returns:
        A non-empty subset.

    Raises:
        UsageError: A word is not in `ALIASES`, such as an empty one, or `all` beside others. The message names it.

    >>> parse("T1ce, FLAIR").key
    't1c+flair'
    >>> parse("all") == ALL
    True
    """
    words = [word.strip().lower() for word in text.replace(",", "+").split("+")]
    if words == ["all"]:
        return ALL
    subset = Modality(0)
    for word in words:
        if word not in ALIASES:
            raise UsageError(
                f"'{word}' is not an MRI sequence. Name them as t1, t1c, t2, flair, joined by '+', or 'all'."
            )
        subset |= ALIASES[word]
    return subset


def union(subsets: Iterable[Modality]) -> Modality:
    """Return all modalities that occur in any of `subsets`; the empty set if there are none."""
    total = Modality(0)
    for subset in subsets:
        total |= subset
    return total


SUBSETS: tuple[Modality, ...] = tuple(
    parse(text)
    for text in (
        "t2", "t1c", "t1", "flair",
        "t1c+t2", "t1+t1c", "t1+flair", "t1+t2", "t2+flair", "t1c+flair",
        "t1+t1c+flair", "t1+t2+flair", "t1c+t2+flair", "t1+t1c+t2",
        "all",
    )
)  # fmt: skip
"""The 15 non-empty subsets of the four modalities: single ones first, in the row order of published tables (RFNet)."""


def subsets_of(available: Modality) -> tuple[Modality, ...]:
    """Return those of the 15 subsets that can be made from `available`, in the order of `SUBSETS`."""
    return tuple(subset for subset in SUBSETS if subset in available)


def to_flags(subset: Modality) -> Bool[Tensor, "m"]:
    """Return one flag for each modality, in channel order: True if it is in the subset."""
    import torch  # imported here, because naming a subset should not cost the 1.4 s of importing torch

    return torch.tensor([modality in subset for modality in Modality])


def from_flags(mask: Bool[Tensor, "m"]) -> Modality:
    """Return the subset of the modalities whose flag is True. There is one flag for each modality, in channel order."""
    return union(modality for modality, flag in zip(Modality, mask.tolist(), strict=True) if flag)
