"""What a result says of itself: volumes in millilitres, lesions, words and the record."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from glimpseg.errors import UsageError
from glimpseg.modality import Modality, parse
from glimpseg.model.expectations import Expectations, Expected, Gain
from glimpseg.model.loading import Model
from glimpseg.region import Label, Region
from glimpseg.results.statistics import Interval
from glimpseg.segmentation.result import Segmentation, volumes_in_words
from glimpseg.segmentation.uncertainty import RegionUncertainty, Uncertainty
from glimpseg.version import NOT_A_DEVICE
from glimpseg.volume import Volume

REGIONS = (Region.WT, Region.TC, Region.ET)
TWO = parse("t1c+flair")


def model(expectations=None):
    """A model of which only the name, the regions and the expectations are asked."""
    provenance = {"sha256": {"weights.safetensors": "0123456789ab"}}
    recipe = SimpleNamespace(method="unet", config=None)
    return Model(SimpleNamespace(regions=REGIONS, choices=()), recipe, provenance, Path("m"), expectations)


def result(expectations=None, uncertainty=None):
    """Two lesions on voxels of 2 x 3 x 5 mm, 0.03 ml: one of ET, NCR and ED, one of ED and a cavity beside it."""
    labels = np.zeros((9, 4, 4), np.uint8)
    labels[0, 0, :2] = Label.ET
    labels[1, 0, :3] = Label.NCR
    labels[2, 0] = Label.ED
    labels[6, 0, 0] = Label.ED
    labels[7] = Label.RC
    affine = np.diag([-2.0, 3, 5, 1])
    return Segmentation(
        labels=Volume(labels, affine), used=TWO, model=model(expectations), images={}, uncertainty=uncertainty
    )


def expectations():
    one = Expected(
        dice=Interval(0.9, 0.89, 0.91, 20), tenth=0.7, temperature=2.0, pooled=False,
        ece_before=0.02, ece_after=0.01, estimate_error=0.04,
    )  # fmt: skip
    gain = Gain(
        sequence=Modality.T2, mean=Interval(0.05, 0.04, 0.06, 20), regions={Region.WT: Interval(0.06, 0.05, 0.07, 20)}
    )
    return Expectations(
        population="phantoms", studies=20, fitted_on=10, subsets={TWO: {Region.WT: one}}, gains={TWO: (gain,)}
    )


def uncertainty():
    doubt = RegionUncertainty(
        estimated_dice=0.8, lowest_ml=0.1, highest_ml=0.4, agreement=math.nan, estimate_error=0.04
    )
    return Uncertainty(level="none", calibrated=True, regions={Region.WT: doubt}, members=())


def test_volumes_are_voxels_times_their_millilitres():
    # WT: 2 + 3 + 4 + 1 = 10 voxels. TC: 2 + 3 = 5. ET: 2. The cavity is in none of them.
    found = result().volumes_ml
    assert found == pytest.approx({Region.WT: 0.3, Region.TC: 0.15, Region.ET: 0.06})
    assert volumes_in_words({Region.WT: 43.66, Region.ET: 7.24}) == "WT 43.7 ml, ET 7.2 ml"


def test_lesions_are_the_connected_parts_of_each_region():
    assert result().lesions == {Region.WT: 2, Region.TC: 1, Region.ET: 1}


def test_the_statistics_hold_volumes_lesions_and_doubts():
    assert result(uncertainty=uncertainty())._statistics() == {
        "WT": {
            "title": "whole tumour", "volume_ml": 0.3, "lesions": 2,
            "estimated_dice": 0.8, "volume_low_ml": 0.1, "volume_high_ml": 0.4, "agreement": None,
        },
        "TC": {"title": "tumour core", "volume_ml": 0.15, "lesions": 1},
        "ET": {"title": "enhancing tumour", "volume_ml": 0.06, "lesions": 1},
    }  # fmt: skip


def test_the_sequences_that_were_not_there_are_named():
    assert result().absent == parse("t1+t2")


def test_what_to_expect_how_sure_it_is_and_what_it_is_not_are_said_in_this_order():
    found = result(expectations(), uncertainty())
    assert found.calibrated
    assert found.trust == [
        "Expected performance with T1c + FLAIR, measured on phantoms (20 studies):",
        "  WT: mean Dice 90.0 % (95 % interval 89.0 to 91.0); one case in ten had 70 % or less.",
        "Adding T2 would help most: +5.0 (+4.0 to +6.0) points of mean Dice (WT +6.0 (+5.0 to +7.0)).",
        "This study, by calibrated probabilities and 1 passes (plain):",
        "  WT: estimated Dice 80 % (such estimates were 4 points off on average); 0.1 to 0.4 ml.",
        NOT_A_DEVICE,
    ]


def test_a_model_without_expectations_says_how_to_get_them():
    found = result()
    assert not found.calibrated
    assert found.trust == [
        "The performance with T1c + FLAIR is not known for this model, which has no expectations.json for this use. "
        "Make a copy that has one from labelled studies: glimpseg calibrate MODEL --data STUDIES -o NEW_MODEL",
        "Research software, not a medical device: not for diagnosis or treatment.",
    ]


def test_expectations_of_other_sequences_calibrate_nothing():
    told = expectations()
    object.__setattr__(told, "subsets", {Modality.T1: told.subsets[TWO]})
    assert not result(told).calibrated


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["nifti", "jpeg"], "'jpeg' is no output type. Choose of nifti, dicom-labelmap, dicom-seg, dicom-sr."),
        (
            ["dicom-seg"],
            "A DICOM SEG lies in the geometry of a DICOM series, and the image on whose grid the result lies came as "
            "NIfTI, or from an archive of one series. Give the study's DICOM with -i, or leave DICOM out of the output "
            "types.",
        ),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_written(tmp_path, types, message):
    with pytest.raises(UsageError) as caught:
        result().save(tmp_path / "out", types=types)
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())
