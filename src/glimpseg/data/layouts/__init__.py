"""Layouts of datasets: find, survey and write studies in BraTS, BIDS, nnU-Net, Decathlon and table form."""

from glimpseg.data.layouts.bids_writer import write_derivative
from glimpseg.data.layouts.brats import RELEASES, release_named, write_study
from glimpseg.data.layouts.convert import write_studies
from glimpseg.data.layouts.find import (
    LAYOUTS,
    RESULT_FILES,
    describe_unused,
    find_studies,
    find_usable,
    usable_studies,
)
from glimpseg.data.layouts.layout import Layout
from glimpseg.data.layouts.manifest import write_manifest
from glimpseg.data.layouts.survey import Survey, survey
from glimpseg.region import convention_named

__all__ = [
    "LAYOUTS",
    "RELEASES",
    "RESULT_FILES",
    "Layout",
    "Survey",
    "convention_named",
    "describe_unused",
    "find_studies",
    "find_usable",
    "release_named",
    "survey",
    "usable_studies",
    "write_derivative",
    "write_manifest",
    "write_studies",
    "write_study",
]
