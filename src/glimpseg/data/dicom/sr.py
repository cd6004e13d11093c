"""Volumes of the regions as a DICOM report (TID 1500), which an archive files beside the segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from glimpseg.data.dicom import codes, libraries
from glimpseg.data.dicom.attributes import inherited_headers
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.dicom.read import source_geometry, source_headers
from glimpseg.data.dicom.seg import (
    LONGEST_NAME,
    SERIES_OFFSET,
    hide_library_errors,
    onto_source,
    series_number,
    write_derived,
)
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.region import Label, Region
from glimpseg.version import __version__
from glimpseg.volume import Volume

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

    Group: TypeAlias = (
        highdicom.sr.VolumetricROIMeasurementsAndQualitativeEvaluations
        | highdicom.sr.MeasurementsAndQualitativeEvaluations
    )

DECIMALS = 3
"""Of millilitres: a cubic millimetre."""


def write_sr(
    path: str | Path,
    labels: Volume,
    segmentation: str | Path,
    source: Series,
    *,
    model: str,
    regions: Sequence[Region] = tuple(Region),
    pseudonyms: Pseudonyms | None = None,
) -> None:
    """Writes the volumes (ml) of `regions` in a label map, with references to the segmentation that `write_seg` made.

    `labels` and `pseudonyms` are those that `write_seg` was given. Leave out of `regions` what the model does not tell
    apart, such as the cavity: of the others an absent one is reported as 0 ml.

    Raises: InputError as `write_seg`, or if the segmentation is of another series; OutputError when the disk refuses.
    """
    import pydicom

    libraries.require_libraries()
    headers = source_headers(source)
    geometry = source_geometry(source, headers)
    with libraries.silence_libraries():
        with hide_library_errors(source):
            images = inherited_headers(headers, pseudonyms)
            found = onto_source(labels, source, geometry)
        try:
            marked = pydicom.dcmread(segmentation, stop_before_pixels=True)
        except Exception as error:
            raise InputError(f"{Path(segmentation).name} is no segmentation ({type(error).__name__}).") from None
        if marked.get("StudyInstanceUID") != images[0].StudyInstanceUID or "SegmentSequence" not in marked:
            raise InputError(f"{Path(segmentation).name} is no segmentation of this study. Give what write_seg wrote.")
        ml = float(geometry.voxel_volume) / 1000
        volumes = {region: float(np.isin(found.array, region.value).sum()) * ml for region in regions}
        with hide_library_errors(source):
            dataset = _report(volumes, marked, images, model)
        write_derived(path, dataset, source, pseudonyms)


def _report(
    volumes: dict[Region, float], marked: Dataset, images: Sequence[Dataset], model: str
) -> highdicom.sr.Comprehensive3DSR:
    import highdicom
    from pydicom.sr.codedict import codes as dictionary

    device = highdicom.sr.ObserverContext(
        observer_type=dictionary.DCM.Device,
        observer_identifying_attributes=highdicom.sr.DeviceObserverIdentifyingAttributes(
            uid=highdicom.UID(), manufacturer_name="glimpseg", model_name=model[:LONGEST_NAME]
        ),
    )
    report = highdicom.sr.MeasurementReport(
        observation_context=highdicom.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.PROCEDURE.concept(),
        imaging_measurements=[_group(region, ml, marked, images, model) for region, ml in volumes.items()],
    )
    dataset = highdicom.sr.Comprehensive3DSR(
        evidence=[*images, marked],
        content=report,
        series_instance_uid=highdicom.UID(),
        series_number=series_number(images, SERIES_OFFSET + 1),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="glimpseg",
        series_description="Brain tumour volumes",
    )
    dataset.CodingSchemeIdentificationSequence = [codes.private_scheme_item()]
    return dataset


def _group(region: Region, ml: float, marked: Dataset, images: Sequence[Dataset], model: str) -> Group:
    """One region: of its own segment if it is one label that occurs, else of the segmentation as a whole."""
    from highdicom import UID, sr
    from pydicom.sr.codedict import codes as dictionary

    name = sr.TrackingIdentifier(identifier=f"glimpseg {region.name}", uid=UID())
    sites = [sr.FindingSite(codes.BRAIN.concept())]
    algorithm = sr.AlgorithmIdentification(name=model[:LONGEST_NAME], version=__version__)
    measured = [sr.Measurement(name=dictionary.SCT.Volume, value=round(ml, DECIMALS), unit=codes.MILLILITRE.concept())]
    segment = _segment_of(region, marked)
    if segment is None:
        return sr.MeasurementsAndQualitativeEvaluations(
            name,
            finding_type=codes.REGIONS[region].concept(),
            finding_category=codes.CATEGORY.concept(),
            finding_sites=sites,
            algorithm_id=algorithm,
            measurements=measured,
            source_images=[sr.SourceImageForMeasurementGroup(marked.SOPClassUID, marked.SOPInstanceUID)],
        )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        name,
        finding_type=codes.REGIONS[region].concept(),
        finding_category=codes.CATEGORY.concept(),
        finding_sites=sites,
        algorithm_id=algorithm,
        measurements=measured,
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=marked.SOPClassUID,
            sop_instance_uid=marked.SOPInstanceUID,
            segment_number=segment,
            source_series=sr.SourceSeriesForSegmentation(images[0].SeriesInstanceUID),
        ),
    )


def _segment_of(region: Region, marked: Dataset) -> int | None:
    if len(region.value) > 1:
        return None
    for item in marked.SegmentSequence:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        if codes.label_of(kind.CodeValue, kind.CodingSchemeDesignator) == Label(region.value[0]):
            return int(item.SegmentNumber)
    return None
