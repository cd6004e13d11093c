"""Label names to conventions: what the names in `dataset.json` and `dseg.tsv` mean."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from glimpseg.errors import InputError
from glimpseg.region import Convention, Label, Region, convention_of

BACKGROUND_NAMES = frozenset(
    {"background", "bg", "backgroundandotherbrain", "everythingelse", "unlabeled", "unlabelled"}
)
_LABELS = {
    Label.NCR: (
        "ncr net netc ncrnet nc necrosis necrotic necroticcore necrotictumorcore nonenhancing nonenhancingtumor "
        "nonenhancingcore nonenhancingtumorcore necroticnonenhancing necroticnonenhancingtumor "
        "necroticnonenhancingcore necroticnonenhancingtumorcore nonenhancingnecrosis nonenhancingnecrotic "
        "necrosisnonenhancing necrosisnonenhancingtumor necrosisnonenhancingtumorcore cc cysticcomponent cyst"
    ),
    Label.ED: (
        "ed edema peritumoraledema vasogenicedema edemainfiltration peritumoraledematous edemainvadedtissue "
        "peritumoraledematousinvadedtissue peritumoraledematoustissue snfh flairhyperintensity "
        "surroundingnonenhancingflairhyperintensity nonenhancingflairhyperintensity"
    ),
    Label.ET: "et enhancing enhancingtumor enhancingcore enhancingtissue contrastenhancingtumor activetumor",
    Label.RC: "rc resectioncavity cavity surgicalcavity",
}
LABEL_SPELLINGS = {word: label for label, spelled in _LABELS.items() for word in spelled.split()}
"""Spellings of the labels, in the form that `_normalised` returns."""
REGION_SPELLINGS = {
    "wt": Region.WT, "whole": Region.WT, "wholetumor": Region.WT,
    "tc": Region.TC, "core": Region.TC, "tumorcore": Region.TC,
}  # fmt: skip
"""Spellings of the regions that are not single labels."""


def convention_of_labels(names: Mapping[int, str]) -> Convention | None:
    """Return the convention of a dataset that names each number; None if no name is a part of a tumour.

    Raises:
        InputError: if some names are parts of a tumour and others are not, or if all names mean background.
    """
    found = {
        number: LABEL_SPELLINGS.get(_normalised(name))
        for number, name in names.items()
        if _normalised(name) not in BACKGROUND_NAMES
    }
    unknown = sorted(names[number] for number, label in found.items() if label is None)
    if found and len(unknown) == len(found):
        return None
    if unknown or not found:
        raise InputError(
            f"The data set names labels {', '.join(map(repr, unknown)) or 'not at all'}, which are no parts of a "
            "tumour that glimpseg knows. Say what each number means: --labels 1=NCR,2=ED,3=ET."
        )
    return convention_of({number: label for number, label in found.items() if label is not None})


def convention_of_regions(regions: Mapping[str, Collection[int]], order: Mapping[str, int]) -> Convention:
    """Return the convention of nnU-Net's region-based labels.

    Args:
        regions: the label numbers that each region unites.
        order: the number that nnU-Net writes for each region; later ones overwrite earlier ones. It must agree with
            `regions`.

    Raises:
        InputError: if the meaning of a number is unclear.
    """
    named = {
        _normalised(name): set(numbers)
        for name, numbers in regions.items()
        if _normalised(name) not in BACKGROUND_NAMES
    }
    unknown = sorted(name for name in named if name not in REGION_SPELLINGS and name not in LABEL_SPELLINGS)
    if unknown:
        raise _unclear_regions(f"it names the regions {', '.join(unknown)}")
    united = {REGION_SPELLINGS[name]: numbers for name, numbers in named.items() if name in REGION_SPELLINGS}
    alone = {LABEL_SPELLINGS[name]: numbers for name, numbers in named.items() if name in LABEL_SPELLINGS}
    meaning = {}
    for number in sorted(set[int]().union(*named.values())):
        meaning[number] = _label_of_number(number, united, alone)
        written = [order[name] for name in order if number in regions.get(name, ())]
        if written and written[-1] != number:
            raise _unclear_regions(f"regions_class_order writes {written[-1]} where the regions say {number}")
    return convention_of(meaning)


def _label_of_number(
    number: int, united: Mapping[Region, Collection[int]], alone: Mapping[Label, Collection[int]]
) -> Label:
    own = [label for label, numbers in alone.items() if number in numbers]
    if len(own) > 1:
        raise _unclear_regions(f"{number} is in {' and in '.join(label.name for label in own)}")
    if own:
        return own[0]
    # The rest of a region is one label only if all parts inside the region are named.
    if number in united.get(Region.TC, ()) and Label.ET in alone:
        return Label.NCR
    if number in united.get(Region.WT, ()) and Region.TC in united and number not in united[Region.TC]:
        return Label.ED
    raise _unclear_regions(f"{number} may be more than one part of the tumour")


def _unclear_regions(why: str) -> InputError:
    return InputError(
        f"The data set's regions do not say what its labels mean: {why}. Say it yourself: --labels 1=NCR,2=ED,3=ET."
    )


def _normalised(name: str) -> str:
    text = name.lower().replace("tumour", "tumor").replace("oedema", "edema")
    text = re.sub(r"\b(and|the|of|gd|gadolinium|label)\b", " ", text.replace("_", " "))
    return re.sub(r"[^a-z0-9]", "", text)
