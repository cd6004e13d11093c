"""Tumour labels, regions made of them, and label conventions of releases.

Inside glimpseg a label map holds `Label` values. A release's own numbers exist only in files. The same number has
different meanings: 4 is enhancing tumour up to BraTS 2021 and in FeTS, and the resection cavity in BraTS 2024; 3 is
non-enhancing core in BraTS 2015 and enhancing tumour since 2023. A convention is therefore determined from the numbers
and the layout together. If both leave it open, the user has to name it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from glimpseg.errors import InputError, UsageError


class Label(enum.IntEnum):
    """Values of a label map inside glimpseg (as in BraTS 2024); 0 is background."""

    NCR = 1
    """Necrosis and non-enhancing tumour core."""
    ED = 2
    """Oedema and infiltration around the core (SNFH in BraTS 2023 and later)."""
    ET = 3
    """Enhancing tumour."""
    RC = 4
    """Resection cavity, after surgery."""


TITLES = {Label.NCR: "necrosis", Label.ED: "oedema", Label.ET: "enhancing", Label.RC: "cavity"}
"""Names of the labels in figures and records."""
COLOURS = {Label.NCR: "#e34a33", Label.ED: "#31a354", Label.ET: "#ffd92f", Label.RC: "#6baed6"}
"""Colours of the labels in figures and DICOM; distinct on grey, and with the most common colour blindness."""


class Region(enum.Enum):
    """Tumour region that is scored: a union of labels.

    The resection cavity (RC) is a region of its own and in neither WT nor TC. The BraTS 2024 challenge scores it in
    this way; some tools count it inside both.

    >>> labels = np.array([0, 1, 2, 3, 4])  # background, NCR, ED, ET, RC
    >>> for region in Region:
    ...     print(region.name, region.title, region.mask(labels).astype(int))
    WT whole tumour [0 1 1 1 0]
    TC tumour core [0 1 0 1 0]
    ET enhancing tumour [0 0 0 1 0]
    RC resection cavity [0 0 0 0 1]
    """

    WT = (Label.NCR, Label.ED, Label.ET)
    TC = (Label.NCR, Label.ET)
    ET = (Label.ET,)
    RC = (Label.RC,)

    @property
    def title(self) -> str:
        """Name of the region in words."""
        return _REGION_TITLES[self]

    def mask(self, labels: np.ndarray) -> np.ndarray:
        """Return a boolean array: True where an array of `Label` values (any shape) lies in the region."""
        return np.isin(labels, self.value)


_REGION_TITLES = {
    Region.WT: "whole tumour",
    Region.TC: "tumour core",
    Region.ET: "enhancing tumour",
    Region.RC: "resection cavity",
}


@dataclass(frozen=True)
class Convention:
    """Label convention: meaning of the numbers in the label files of one family of releases."""

    name: str
    meaning: Mapping[int, Label]
    layouts: tuple[str, ...]
    """File layouts (see `data.layouts`) in which the convention occurs."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """Regions all of whose labels have a number in the convention, in the order of `Region`."""
        found = set(self.meaning.values())
        return tuple(region for region in Region if found.issuperset(region.value))

    def read(self, values: np.ndarray, what: str = "the label map") -> np.ndarray:
        """Convert file numbers to `Label` values (uint8, same shape). 0 stays 0.

        Args:
            values: Numbers of the file.
            what: Name of the label map in error messages.

        Raises:
            InputError: A number is not within 1e-3 of 0 or of one that the convention knows.
        """
        rounded = whole_numbers(values, what)
        unknown = sorted(set(np.unique(rounded).tolist()) - {0, *self.meaning})
        if unknown:
            raise InputError(
                f"{what} holds the labels {unknown}, which {self.name} does not know (it has "
                f"{sorted(self.meaning)}). Name the right convention: {', '.join(CONVENTIONS)}."
            )
        labels = np.zeros(rounded.shape, np.uint8)
        for number, label in self.meaning.items():
            labels[rounded == number] = label
        return labels

    def write(self, labels: np.ndarray) -> np.ndarray:
        """Convert `Label` values to file numbers (uint8, same shape).

        Raises:
            InputError: A label that occurs has no number in this convention; or the convention has two numbers for
                one label, even if that label does not occur.
        """
        if len(set(self.meaning.values())) < len(self.meaning):
            raise InputError(f"{self.name} has two numbers for one label, so it can only be read. Choose another.")
        numbers = {label: number for number, label in sorted(self.meaning.items(), reverse=True)}
        values = np.zeros(labels.shape, np.uint8)
        for label in np.unique(labels[labels > 0]).tolist():
            if label not in numbers:
                raise InputError(f"{Label(label).name} has no number under {self.name}. Choose another layout.")
            values[labels == label] = numbers[Label(label)]
        return values


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention("brats2015", {1: Label.NCR, 2: Label.ED, 3: Label.NCR, 4: Label.ET}, ("brats2015", "brats")),
        Convention("brats2021", {1: Label.NCR, 2: Label.ED, 4: Label.ET}, ("brats2021", "brats2023", "brats")),
        Convention("brats2023", {1: Label.NCR, 2: Label.ED, 3: Label.ET}, ("brats2023", "pediatric", "brats")),
        Convention("brats2024", {1: Label.NCR, 2: Label.ED, 3: Label.ET, 4: Label.RC}, ("brats2023", "brats")),
        Convention("pediatric2024", {1: Label.ET, 2: Label.NCR, 3: Label.NCR, 4: Label.ED}, ("pediatric",)),
        Convention("msd", {1: Label.ED, 2: Label.NCR, 3: Label.ET}, ("msd",)),
    )
}
"""Label conventions by name.

`brats2021` is for BraTS 2017 to 2021 and FeTS; `brats2015` for 2013 to 2016; `msd` for the Medical Segmentation
Decathlon and for BraTS as converted by nnU-Net. In 2015, 3 is non-enhancing solid tumour, which later releases joined
with necrosis. In `pediatric2024` (BraTS-PEDs 2024), 2 is non-enhancing tumour and 3 is cyst; both belong to the core,
as in the first release (2023), which had joined them itself. The old numbers also occur with the new file names, in
datasets that were renamed. A 4 without a 3 is therefore ambiguous there.
"""


def convention_named(name: str) -> Convention:
    """Return the convention with this name, or with a meaning that is spelled out, such as `1=ED,2=NCR,3=ET`.

    Numbers are 1 to 255, meanings are names of `Label`; of a repeated number the last meaning counts. A spelled-out
    meaning that one of `CONVENTIONS` has gives that convention.

    Raises:
        UsageError: The name is neither.
    """
    if name in CONVENTIONS:
        return CONVENTIONS[name]
    parts = [part.strip().partition("=") for part in name.split(",")]
    if not all(number.isdecimal() and 0 < int(number) < 256 and word in Label.__members__ for number, _, word in parts):
        raise UsageError(
            f"'{name}' is not a label convention. Choose one of {', '.join(CONVENTIONS)}, or say what each number "
            "means, such as 1=ED,2=NCR,3=ET."
        )
    return convention_of({int(number): Label[word] for number, _, word in parts})


def convention_of(meaning: Mapping[int, Label]) -> Convention:
    """Return the convention with this meaning of numbers: one of `CONVENTIONS`, or a new one named by its meaning."""
    ordered = dict(sorted(meaning.items()))
    known = [convention for convention in CONVENTIONS.values() if convention.meaning == ordered]
    spelled = ",".join(f"{number}={label.name}" for number, label in ordered.items())
    return known[0] if known else Convention(spelled, ordered, ())


def whole_numbers(values: np.ndarray, what: str = "the label map") -> np.ndarray:
    """Return `values` as int64; floats are rounded (files store labels as floats, too).

    Args:
        values: Numbers of a label map. Integers are not checked.
        what: Name of the label map in error messages.

    Raises:
        InputError: A float is not finite, lies more than 1e-3 from a whole number, or rounds to a number outside -255
            to 255. The map was interpolated, or is not a label map.
    """
    if not np.issubdtype(values.dtype, np.floating):
        return values.astype(np.int64)
    finite = np.isfinite(values).all()
    rounded = np.rint(np.nan_to_num(values))
    if not finite or np.abs(values - rounded).max(initial=0) > 1e-3 or np.abs(rounded).max(initial=0) > 255:
        worst = values.ravel()[int(np.argmax(np.abs(values - rounded)))] if finite else "NaN or infinity"
        raise InputError(
            f"{what} should hold whole numbers but holds {worst}. Was it interpolated, or is it an image? "
            "Resample label maps with nearest neighbour."
        )
    return rounded.astype(np.int64)


def detect_convention(numbers: Collection[int], layout: str | None, what: str = "the label map") -> Convention:
    """Determine the convention of label files from the numbers in them.

    Pass the numbers of a whole dataset: a single study may lack a label. If several conventions fit and agree about
    every number, the one with the fewest other numbers is returned; among equals, the layout's own.

    Args:
        numbers: Numbers that occur in the files; 0 is ignored.
        layout: Layout of the dataset; None for an unknown BraTS release.
        what: Name of the label maps in error messages.

    Raises:
        InputError: No convention of the layout has all the numbers, or those that have them disagree about one.
    """
    present = {int(number) for number in numbers} - {0}
    known = [c for c in CONVENTIONS.values() if (layout or "brats") in c.layouts]
    fitting = [c for c in known if present <= set(c.meaning)]
    if not fitting:
        raise InputError(
            f"{what} holds the labels {sorted(present)}, which no convention "
            f"{'of the layout ' + layout if layout else 'known here'} explains "
            f"({'; '.join(f'{c.name}: {sorted(c.meaning)}' for c in known)}). Correct the file or name the convention."
        )
    readings = {tuple(c.meaning[number] for number in sorted(present)) for c in fitting}
    if len(readings) > 1:
        raise InputError(
            f"{what} holds the labels {sorted(present)}, which mean different things under "
            f"{' and '.join(c.name for c in fitting)}. Name the convention (--labels)."
        )
    return min(fitting, key=lambda c: (len(c.meaning), layout is not None and c.layouts[0] != layout))
