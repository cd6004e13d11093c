"""Evaluation protocols: the rules that two numbers must share before they can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from glimpseg.data.preprocess import Prepared, Preprocess, prepare
from glimpseg.errors import UsageError
from glimpseg.evaluation.rfnet_preprocessing import prepare_rfnet
from glimpseg.study import Study


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Rules of an evaluation: how a study is prepared for the network, and where the result is scored."""

    name: str
    prepare: Callable[[Study, Preprocess], Prepared]
    """Preprocessing of a study, with the settings of the model's recipe."""
    weighting: str
    """Weights of overlapping windows: `gaussian` or `constant`."""
    rules: Mapping[str, str]
    """Rules by name, for the record and the report."""
    facts: Mapping[str, str]
    """The same rules in the words of published tables (`evaluation.published`), to show beside them."""
    caution: str = ""
    """Warning that is logged when an evaluation begins, unless the model was trained on such intensities; empty for
    none."""


_COMMON_RULES = {
    "windows": "the recipe's patch, overlapping by half; one window for a smaller brain, or a larger one of which the "
    "method says that it sees it whole (unet: up to twice the patch)",
    "post-processing": "none; ET is also given as ET_pp, by the rule of the RFNet family: fewer than 500 predicted "
    "voxels of 1 mm (0.5 ml) count as no ET, in the ET score alone",
    "test-time augmentation": "none",
    "means": "over cases for one subset, then plain over the subsets",
}

_COMMON_FACTS = {
    "ET post-processing": "none in ET; fewer than 500 voxels counted as none in ET_pp",
    "test-time augmentation": "none",
    "HD95 for an empty mask": "the grid's diagonal; both empty 0",
    "model kept": "as training left it",
}

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="clinical",
            prepare=prepare,
            weighting="gaussian",
            rules={
                "sequences": "only those of the subset touch crop, normalisation and network",
                "grid": "the whole volume, on the study's own grid",
                "weights of windows": "Gaussian",
                **_COMMON_RULES,
            },
            facts={**_COMMON_FACTS, "scored on": "the whole volume"},
        ),
        Protocol(
            name="rfnet",
            prepare=prepare_rfnet,
            weighting="constant",
            rules={
                "sequences": "all four touch crop and normalisation, also those that are absent (RFNet family)",
                "grid": "inside the crop of all four sequences, which loses the last plane of brain along each axis; "
                "tumour outside is not counted",
                "weights of windows": "equal",
                **_COMMON_RULES,
                "model": "as training left it; none is chosen on a validation or test list",
            },
            facts={**_COMMON_FACTS, "scored on": "the box of all four sequences"},
            caution="The protocol rfnet shows a network other intensities than glimpseg's preprocessing does, above "
            "all outside the brain. A model that was not trained on them does much worse than under clinical.",
        ),
    )
}
"""Protocols by name; `clinical` is the default."""


def protocol_named(name: str) -> Protocol:
    """Return a protocol by its name. Raises: UsageError for an unknown name."""
    if name not in PROTOCOLS:
        raise UsageError(f"'{name}' is not a protocol. Choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
