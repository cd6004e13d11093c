"""The four MRI sequences, and sets of them.

Declaration order is channel order; it is written nowhere else.
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
    """A set of MRI modalities; a single one is the set of itself.

    `Modality.T1C | Modality.FLAIR` is a subset, `Modality.T1C in subset` asks, `for modality in subset` walks
    the members in channel order and `len(subset)` counts them.
    """

    T1 = enum.auto()
    T1C = enum.auto()
    T2 = enum.auto()
    FLAIR = enum.auto()

    @property
    def key(self) -> str:
        """How files and command lines write it: `t1c+flair`; `none` for the empty set."""
        return "+".join(str(modality.name).lower() for modality in self) or "none"

    @property
    def title(self) -> str:
        """How screens write it: `T1c + FLAIR`."""
        return " + ".join(_TITLES[modality] for modality in self) or "none"


ALL = Modality.T1 | Modality.T1C | Modality.T2 | Modality.FLAIR

_TITLES = {Modality.T1: "T1", Modality.T1C: "T1c", Modality.T2: "T2", Modality.FLAIR: "FLAIR"}

ALIASES: dict[str, Modality] = {
    **dict.fromkeys(("t1", "t1n", "t1w"), Modality.T1),
    **dict.fromkeys(("t1c", "t1ce", "t1gd"), Modality.T1C),
    **dict.fromkeys(("t2", "t2w"), Modality.T2),
    **dict.fromkeys(("flair", "t2f", "fla"), Modality.FLAIR),
}
"""Every spelling of a modality in the releases' file names and in the field's tools (lower case)."""


def parse(text: str) -> Modality:
    """The subset a text names: `t1c+flair`, `T1ce, FLAIR`, `all`. Never empty.

    Raises: UsageError naming the word that is not a modality.
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
    """All modalities that occur in any of `subsets`; the empty set for none."""
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
"""The 15 non-empty subsets, singles first, in the order of the field's tables (RFNet's rows)."""


def subsets_of(available: Modality) -> tuple[Modality, ...]:
    """Those of the 15 subsets that can be made from `available`, in table order."""
    return tuple(subset for subset in SUBSETS if subset in available)


def to_flags(subset: Modality) -> Bool[Tensor, "m"]:
    """One flag for each channel, in channel order."""
    import torch  # here, so that naming a subset does not cost the 1.4 s of importing torch

    return torch.tensor([modality in subset for modality in Modality])


def from_flags(mask: Bool[Tensor, "m"]) -> Modality:
    """The subset whose flags `mask` holds, in channel order."""
    return union(modality for modality, flag in zip(Modality, mask.tolist(), strict=True) if flag)
