"""How much wider than the standard population phantoms are drawn: rarer tumours, other scanners, errors on the way.

All of it is absent by default, and then a case has the voxels of the standard population. What is drawn, and how
strong, is in `wider`. Physics ends where `contrast` and `histogram` begin: they are plain randomisation, so that a
network learns not to rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Variety:
    """Probabilities, and widths of distributions whose middle is the standard population."""

    scattered: float = 0.0
    """Probability of one to three more foci anywhere in the brain."""
    crossing: float = 0.0
    """Probability that the tumour starts near the midline and grows into both hemispheres."""
    lopsided: float = 0.0
    """Probability that a focus' oedema lies mostly to one side of its core."""
    tiny: float = 0.0
    """Probability of a core of 0.2 to 2 ml."""
    cystic: float = 0.0
    """Probability of a high-grade core that is a cyst in a thin wall."""
    compact: float = 0.0
    """Probability of a high-grade core that enhances throughout, with little or no dead tissue."""
    dull: float = 0.0
    """Probability of a high-grade core that does not enhance."""
    texture: float = 0.0
    """Width of the logarithm of how uneven the lesion's tissues are."""
    infarct: float = 0.0
    """Probability of an infarct, fresh or old, which is no tumour."""
    aged: float = 0.0
    """Probability of many white-matter lesions, and of caps around the ventricles."""
    vessels: float = 0.0
    """Width of the logarithm of how thick vessels are; with it come fine veins in the sulci."""
    sequences: float = 0.0
    """Probability that a sequence is of another kind: three-dimensional spin echo, T1 with inversion, T2 gradient
    echo, FLAIR that nulls fluid badly."""
    tissue: float = 0.0
    """Width of the logarithms of the lesion tissues' T1 and T2 between cases; half of it for normal tissue."""
    uptake: float = 0.0
    """Width of the logarithm of the contrast agent's concentration in enhancing tumour."""
    contrast: float = 0.0
    """Width of the logarithm of a factor on each tissue's signal in each sequence."""
    flatness: float = 0.0
    """Width of the logarithm of an exponent on the contrast between grey and white matter, and how far it lies below 1
    on T2 and FLAIR and above 1 on T1c."""
    coarse: float = 0.0
    """Probability that a sequence was scanned in coarse voxels and interpolated back."""
    motion: float = 0.0
    """Probability that the patient moved: a sequence blurred by copies of itself, a ghost along one axis."""
    ringing: float = 0.0
    """Probability that a sequence rings at edges."""
    stripes: float = 0.0
    """Probability that slices differ in brightness."""
    field: float = 0.0
    """Probability of a coil whose sensitivity varies more, and over shorter distances."""
    central: float = 0.0
    """Probability that a sequence is brighter in the middle of the head, as at 3 T, and that the deep structures'
    own contrast on T1 and T1c is stronger."""
    noisy: float = 0.0
    """Probability of more noise than the settings say."""
    histogram: float = 0.0
    """Width of the logarithm of gamma; with it come bright values that are cut off."""
    strip: float = 0.0
    """Probability of an error in skull-stripping: bites out of the brain, or a rind of membranes left around it."""
    coverage: float = 0.0
    """Probability that a sequence does not reach the top or the bottom; of a slab in place of the head, a third."""
    registration: float = 0.0
    """Probability that a sequence is registered badly, by up to 1.5 mm along each axis."""
    outer: float = 0.0
    """Share of the numbers that come from beyond the widths, and from above the strengths, that are otherwise drawn."""

    def __post_init__(self) -> None:
        """Raises: ValueError naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{field.name} is a probability or a width between 0 and 1; {value} came. Give, say, 0.2."
                )

    @property
    def is_standard(self) -> bool:
        """Whether this is the standard population."""
        return self == STANDARD


STANDARD = Variety()
"""Nothing beyond the population that `phantom-1` is drawn from."""
WIDE = Variety(
    scattered=0.12, crossing=0.10, lopsided=0.45, tiny=0.10, cystic=0.10, compact=0.25, dull=0.06, texture=0.45,
    infarct=0.10, aged=0.20, vessels=0.35, sequences=0.20, tissue=0.10, uptake=0.35, contrast=0.04, flatness=0.25,
    coarse=0.25, motion=0.15, ringing=0.10, stripes=0.10, field=0.20, central=0.35, noisy=0.10, histogram=0.10,
    strip=0.25, coverage=0.15, registration=0.15,
)  # fmt: skip
"""What the network in the box learns from. A wider one (tissue 0.20, contrast 0.08, flatness 0.35, histogram 0.16) was
tried: in one of ten of 40 phantoms oedema's area under the ROC curve on FLAIR, against brain, was below 0.72. Patients'
mean is 0.96, and what was trained on it read them badly."""
SHIFTED = Variety(
    scattered=0.15, crossing=0.15, lopsided=0.55, tiny=0.08, cystic=0.15, compact=0.25, dull=0.08, texture=0.45,
    infarct=0.15, aged=0.30, vessels=0.35, sequences=0.40, tissue=0.10, uptake=0.35, contrast=0.04, flatness=0.25,
    coarse=0.40, motion=0.20, ringing=0.15, stripes=0.15, field=0.30, central=0.40, noisy=0.15, histogram=0.10,
    strip=0.30, coverage=0.15, registration=0.20, outer=0.15,
)  # fmt: skip
"""Held out: every case has several things, of some sixty that are drawn, outside of all that `WIDE` draws."""

VARIETIES: Mapping[str, Variety] = {"standard": STANDARD, "wide": WIDE, "shifted": SHIFTED}
"""By name."""
