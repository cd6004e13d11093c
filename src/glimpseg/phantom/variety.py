"""Variety of a population: variation of phantoms beyond the standard population.

A variety adds rare tumours, other scanners and errors of scanning and processing. By default it adds nothing, and a
case has the voxels of the standard population. `draw_variety` applies a variety to a plan and holds the strength of
each effect. Most fields model an effect of physics or anatomy. `contrast` and `histogram` do not: they are plain
randomisation, which keeps a network from relying on absolute contrast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_shares(record: DataclassInstance) -> None:
    """Check that all fields of a dataclass are probabilities or widths.

    Raises:
        ValueError: A field is not between 0 and 1. The message names it.
    """
    for field in fields(record):
        value = getattr(record, field.name)
        if not 0 <= value <= 1:
            raise ValueError(f"{field.name} is a probability or a width between 0 and 1; {value} came. Give, say, 0.2.")


@dataclass(frozen=True, kw_only=True)
class Variety:
    """Strength of each variation, from 0 (none) to 1.

    A field is either the probability of an effect, or the width of a factor's distribution: the standard deviation of
    its logarithm, around the standard population. Deviations are truncated at 1.5 standard deviations.
    """

    scattered: float = 0.0
    """Probability of one to three more foci anywhere in eligible white matter."""
    crossing: float = 0.0
    """Probability that the tumour starts near the midline and grows into both hemispheres."""
    lopsided: float = 0.0
    """Probability that the oedema of the first focus lies mostly to one side of its core."""
    tiny: float = 0.0
    """Probability that the first focus has a core of 0.2 to 2 ml."""
    cystic: float = 0.0
    """Probability of a high-grade core that is a cyst with a thin wall."""
    compact: float = 0.0
    """Probability of a high-grade core that enhances throughout, with little or no necrosis."""
    dull: float = 0.0
    """Probability of a high-grade core that does not enhance."""
    texture: float = 0.0
    """Width of the unevenness of the lesion's tissues."""
    infarct: float = 0.0
    """Probability of an infarct, fresh or old. It is not a tumour and has no label."""
    aged: float = 0.0
    """Probability of many white-matter lesions, and of caps (bright white matter) around the ventricles."""
    vessels: float = 0.0
    """Width of the thickness of vessels. It also adds fine veins in the sulci."""
    sequences: float = 0.0
    """Probability that a sequence is of another kind.

    The other kinds are three-dimensional spin echo, T1 with inversion, T2 gradient echo, and a FLAIR that suppresses
    fluid badly.
    """
    tissue: float = 0.0
    """Width of T1 and T2 of the lesion tissues between cases; half of it for normal tissues."""
    uptake: float = 0.0
    """Width of the concentration of contrast agent in enhancing tumour."""
    contrast: float = 0.0
    """Width of a factor on the signal of each tissue in each sequence."""
    flatness: float = 0.0
    """Width of an exponent on the contrast between grey and white matter.

    It also sets how far the exponent lies below 1 on T2 and FLAIR and above 1 on T1c.
    """
    coarse: float = 0.0
    """Probability that a sequence was scanned in coarse voxels and interpolated back."""
    motion: float = 0.0
    """Probability that the patient moved: the sequence is blurred and has a ghost along one axis."""
    ringing: float = 0.0
    """Probability that a sequence shows ringing at edges."""
    stripes: float = 0.0
    """Probability that slices differ in brightness."""
    field: float = 0.0
    """Probability of a coil with stronger sensitivity variation over shorter distances."""
    central: float = 0.0
    """Probability that a sequence is brighter in the middle of the head, as at 3 T.

    The contrast of the deep nuclei on T1 and T1c is then stronger, too.
    """
    noisy: float = 0.0
    """Probability of more noise than `Settings.noise`."""
    histogram: float = 0.0
    """Width of the exponent (gamma) on the intensities. It also adds clipping of bright values."""
    strip: float = 0.0
    """Probability of an error in skull-stripping: parts of the brain are missing, or membranes are left around it."""
    coverage: float = 0.0
    """Probability that a sequence lacks the top or the bottom of the brain.

    A third of it is the probability that all sequences show a slab instead of the head.
    """
    registration: float = 0.0
    """Probability that a sequence is registered badly, by up to 1.5 mm along each axis."""
    outer: float = 0.0
    """Share of the random numbers that are drawn outside the usual range.

    Deviations are then beyond the truncation, strengths above their range.
    """

    def __post_init__(self) -> None:
        """Check that all fields lie between 0 and 1.

        Raises:
            ValueError: A field is out of range. The message names it.
        """
        check_shares(self)

    @property
    def is_standard(self) -> bool:
        """True if this is the standard population."""
        return self == STANDARD


STANDARD = Variety()
"""Standard population: no variation beyond the one that `phantom-1` is drawn from."""
WIDE = Variety(
    scattered=0.12, crossing=0.10, lopsided=0.45, tiny=0.10, cystic=0.10, compact=0.25, dull=0.06, texture=0.45,
    infarct=0.10, aged=0.20, vessels=0.35, sequences=0.20, tissue=0.10, uptake=0.35, contrast=0.04, flatness=0.25,
    coarse=0.25, motion=0.15, ringing=0.10, stripes=0.10, field=0.20, central=0.35, noisy=0.10, histogram=0.10,
    strip=0.25, coverage=0.15, registration=0.15,
)  # fmt: skip
"""Wide population, on which the shipped model is trained.

A wider one (tissue 0.20, contrast 0.08, flatness 0.35, histogram 0.16) was tried. In one of ten of 40 phantoms, oedema
against brain on FLAIR then had an area under the ROC curve below 0.72; the mean of patients is 0.96. A network trained
on it performed badly on patients.
"""
SHIFTED = Variety(
    scattered=0.15, crossing=0.15, lopsided=0.55, tiny=0.08, cystic=0.15, compact=0.25, dull=0.08, texture=0.45,
    infarct=0.15, aged=0.30, vessels=0.35, sequences=0.40, tissue=0.10, uptake=0.35, contrast=0.04, flatness=0.25,
    coarse=0.40, motion=0.20, ringing=0.15, stripes=0.15, field=0.30, central=0.40, noisy=0.15, histogram=0.10,
    strip=0.30, coverage=0.15, registration=0.20, outer=0.15,
)  # fmt: skip
"""Held-out population for validation.

A variety draws some sixty numbers for each case. In every case of this population several of them lie outside the range
of `WIDE`.
"""

VARIETIES: Mapping[str, Variety] = {"standard": STANDARD, "wide": WIDE, "shifted": SHIFTED}
"""Varieties by name."""
