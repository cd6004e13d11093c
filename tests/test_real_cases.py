"""Real scans, where a folder of them is named by GLIMPSEG_REAL_CASES; skipped elsewhere.

Each case is a folder with files such as `t1c.nii.gz`, `t2f.nii.gz`. Only form is asserted here, with an
untrained network: what is found lies on the study's own grid, whatever the file looks like.
"""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from glimpseg.data.layouts import find_studies
from glimpseg.segmentation.predict import load, segment_study

FOLDER = Path(os.environ.get("GLIMPSEG_REAL_CASES", "nowhere"))
STUDIES = find_studies(FOLDER, labels="brats2015") if FOLDER.is_dir() else []

pytestmark = pytest.mark.skipif(not STUDIES, reason="GLIMPSEG_REAL_CASES names no folder of cases")


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.id)
@pytest.mark.parametrize("how_many", ["all", "one"])
def test_a_real_case_is_segmented_on_its_own_grid(study, how_many, model_folder, tmp_path):
    modality = next(iter(study.available))
    chosen = study if how_many == "all" else study.restricted_to(modality)
    segment_study(chosen, load(model_folder, "cpu")).save(tmp_path / "out")
    written, given = nibabel.load(tmp_path / "out" / "seg.nii.gz"), nibabel.load(study.images[modality])
    assert written.shape == given.shape
    assert np.array_equal(written.affine, given.affine)
    assert (tmp_path / "out" / "preview.png").stat().st_size > 10_000
