"""Synthetic DICOM series made from volumes: classic slices, enhanced multi-frame files, compressed by dcmtk.

The patients are invented. `CANARIES` holds every word that names them, so that a test can search for it.
"""

import shutil
import subprocess
import warnings
from dataclasses import dataclass, field, replace

import nibabel
import numpy as np

PLANES = {"axial": "HPL", "sagittal": "LFP", "coronal": "AFL"}
"""Directions in which slice, row and column numbers grow, as scanners store them."""
COMPRESSIONS = {
    "jpeg-lossless": ("dcmcjpeg", "+e1"),
    "jpeg-lossless-any": ("dcmcjpeg", "+el"),
    "jpeg-ls": ("dcmcjpls", "+el"),
    "rle": ("dcmcrle",),
}
"""dcmtk program of each compression; the first is JPEG lossless with selection value 1, which most archives use."""


@dataclass(frozen=True)
class Person:
    """An invented patient."""

    name: str = "QUIXOTEXX^ALONSOXX"
    id: str = "PIDXX4711"
    birth: str = "19470116"
    sex: str = "M"


CANARIES = ("quixotexx", "alonsoxx", "pidxx4711", "19470116", "accxx0815", "dulcineaxx", "20240229")
"""Words that must never appear in messages, tables or file names; lower case."""


@dataclass(frozen=True)
class Acquisition:
    """Header values of one series. `tags` (by DICOM keyword) override all others."""

    description: str = "t1_se_tra"
    plane: str = "axial"
    """A key of `PLANES`, or "as stored": the first axis of the array counts columns, the last one slices."""
    reversed: bool = False
    """True if instance numbers count from the last slice."""
    number: int = 1
    person: Person = field(default_factory=Person)
    study: str = "1"
    """Determines the study's UID; series of one study share it."""
    frame_of_reference: str = "1"
    slope: float = 1.0
    intercept: float = 0.0
    tags: dict = field(default_factory=dict)
    """More attributes: {"EchoTime": 90, "ContrastBolusAgent": "Gadovist", "ImageType": ["DERIVED", "PRIMARY"]}."""


def uid(*parts):
    """Return a UID that depends only on the words."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["glimpseg phantom", *map(str, parts)]))


def as_dicom(voxels, affine, acquisition):
    """Return highdicom's volume of an array (x y z) with a RAS affine, in the order in which a scanner stores it."""
    import highdicom

    volume = highdicom.Volume.from_nibabel(
        nibabel.Nifti1Image(voxels, affine),
        frame_of_reference_uid=uid("frame", acquisition.person.id, acquisition.frame_of_reference),
    )
    if acquisition.plane == "as stored":
        return volume.permute_spatial_axes((2, 1, 0))
    return volume.to_patient_orientation(PLANES[acquisition.plane])


def write_series(folder, voxels, affine, acquisition=None, **changes):
    """Write one file for each slice into `folder` and return their paths, in the order of instance numbers.

    Args:
        folder: folder to write into.
        voxels: whole numbers of 16 bits, x y z.
        affine: maps voxel indices to RAS millimetres.
        acquisition: header values; None uses the defaults.
        changes: fields of `Acquisition`: `write_series(folder, voxels, affine, description="t2_tse", tags={"EchoTime":
            90})`.
    """
    acquisition = replace(acquisition or Acquisition(), **changes)
    volume = as_dicom(np.asarray(voxels), affine, acquisition)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for position in range(volume.shape[0]):
        number = volume.shape[0] - position if acquisition.reversed else position + 1
        path = folder / f"s{acquisition.number:03d}-i{number:04d}.dcm"
        _slice(volume, position, number, acquisition).save_as(path, enforce_file_format=True)
        paths.append((number, path))
    return [path for _, path in sorted(paths)]


def write_enhanced(folder, voxels, affine, acquisition=None, **changes):
    """Write one Enhanced MR file that holds all slices as frames, and return its path in a list."""
    acquisition = replace(acquisition or Acquisition(), **changes)
    volume = as_dicom(np.asarray(voxels), affine, acquisition)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"s{acquisition.number:03d}-enhanced.dcm"
    _multi_frame(volume, acquisition).save_as(path, enforce_file_format=True)
    return [path]


def has_dcmtk():
    """True if dcmtk's programs are installed."""
    return all(shutil.which(program) for program, *_ in COMPRESSIONS.values())


def compress(paths, name):
    """Compress files in place with dcmtk; `name` is a key of `COMPRESSIONS`."""
    program, *options = COMPRESSIONS[name]
    for path in paths:
        target = path.with_suffix(".packed")
        subprocess.run([program, *options, path, target], check=True, capture_output=True)
        target.replace(path)


def change(path, **tags):
    """Change attributes of one file; a value of None removes the attribute."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests write invalid values
        dataset = pydicom.dcmread(path)
        for keyword, value in tags.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
                if keyword == "SOPInstanceUID":
                    dataset.file_meta.MediaStorageSOPInstanceUID = value
        dataset.save_as(path)


def _base(acquisition, sop_class, instance):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    person = acquisition.person
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    words = (person.id, acquisition.study, acquisition.number)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid(*words, instance)
    dataset.StudyInstanceUID = uid(*words[:2])
    dataset.SeriesInstanceUID = uid(*words)
    dataset.Modality = "MR"
    dataset.PatientName, dataset.PatientID = person.name, person.id
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = person.birth, person.sex, "077Y"
    dataset.StudyID, dataset.AccessionNumber = "1", "ACCXX0815"
    dataset.ReferringPhysicianName = "DULCINEAXX^DEL"
    dataset.StudyDescription = "MR BRAIN"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20240229"
    dataset.StudyTime, dataset.SeriesTime = "100000", f"10{acquisition.number % 60:02d}00"
    dataset.AcquisitionTime = dataset.ContentTime = dataset.SeriesTime
    dataset.SeriesNumber = acquisition.number
    dataset.SeriesDescription = acquisition.description
    dataset.ProtocolName = acquisition.description
    dataset.Manufacturer, dataset.ManufacturerModelName = "Phantom", "None"
    dataset.MagneticFieldStrength, dataset.BodyPartExamined = 3, "BRAIN"
    dataset.PatientPosition = "HFS"
    dataset.PositionReferenceIndicator = None
    dataset.FrameOfReferenceUID = uid("frame", person.id, acquisition.frame_of_reference)
    return dataset


def _pixels(dataset, array):
    array = np.asarray(array)
    if array.min() < -(2**15) or array.max() >= 2**16 or (array.min() < 0 and array.max() >= 2**15):
        raise ValueError("Give voxels that fit into 16 bits.")
    signed = bool(array.min() < 0)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.PixelData = array.astype("<i2" if signed else "<u2").tobytes()


def _decimal(*values):
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


def _slice(volume, position, number, acquisition):
    from pydicom.uid import MRImageStorage

    dataset = _base(acquisition, MRImageStorage, number)
    plane = volume.get_plane_positions()[position][0]
    measures = volume.get_pixel_measures()[0]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.ImagePositionPatient = _decimal(*plane.ImagePositionPatient)
    dataset.ImageOrientationPatient = _decimal(*volume.get_plane_orientation()[0].ImageOrientationPatient)
    dataset.PixelSpacing = _decimal(*measures.PixelSpacing)
    dataset.SliceThickness = _decimal(measures.SliceThickness)[0]
    dataset.SpacingBetweenSlices = _decimal(volume.spacing_between_slices)[0]
    dataset.InstanceNumber = number
    dataset.AcquisitionNumber = 1
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", None
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = 500, 15, 1
    dataset.FlipAngle = 90
    if (acquisition.slope, acquisition.intercept) != (1, 0):
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(acquisition.slope, acquisition.intercept)
        dataset.RescaleType = "US"
    _pixels(dataset, volume.array[position])
    for keyword, value in acquisition.tags.items():
        setattr(dataset, keyword, value)
    return dataset


def _multi_frame(volume, acquisition):
    from pydicom.dataset import Dataset
    from pydicom.uid import EnhancedMRImageStorage

    dataset = _base(acquisition, EnhancedMRImageStorage, "enhanced")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.InstanceNumber = 1
    dataset.NumberOfFrames = volume.shape[0]
    dataset.AcquisitionDateTime = dataset.AcquisitionDate + dataset.AcquisitionTime
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.VolumeBasedCalculationTechnique, dataset.ComplexImageComponent = "NONE", "MAGNITUDE"
    dataset.AcquisitionContrast = "T1"
    shared = Dataset()
    shared.PlaneOrientationSequence = volume.get_plane_orientation()
    shared.PixelMeasuresSequence = volume.get_pixel_measures()
    shared.PixelMeasuresSequence[0].PixelSpacing = _decimal(*shared.PixelMeasuresSequence[0].PixelSpacing)
    shared.PixelValueTransformationSequence = [Dataset()]
    transform = shared.PixelValueTransformationSequence[0]
    transform.RescaleSlope, transform.RescaleIntercept = _decimal(acquisition.slope, acquisition.intercept)
    transform.RescaleType = "US"
    shared.MRTimingAndRelatedParametersSequence = [Dataset()]
    timing = shared.MRTimingAndRelatedParametersSequence[0]
    timing.RepetitionTime, timing.FlipAngle, timing.EchoTrainLength = 500, 90, 1
    shared.MREchoSequence = [Dataset()]
    shared.MREchoSequence[0].EffectiveEchoTime = 15.0
    _shared_tags(shared, dataset, acquisition.tags)
    dataset.SharedFunctionalGroupsSequence = [shared]
    organization = uid("dimensions", acquisition.number)
    dataset.DimensionOrganizationSequence = [Dataset()]
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    dataset.DimensionIndexSequence = [Dataset()]
    index = dataset.DimensionIndexSequence[0]
    index.DimensionOrganizationUID = organization
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00209057, 0x00209111  # in-stack position
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame(position, number + 1, acquisition)
        for number, position in enumerate(_in_turn(volume.get_plane_positions(), acquisition.reversed))
    ]
    _pixels(dataset, volume.array[::-1] if acquisition.reversed else volume.array)
    return dataset


def _in_turn(items, backwards):
    return list(reversed(items)) if backwards else list(items)


def _frame(position, number, acquisition):
    from pydicom.dataset import Dataset

    frame = Dataset()
    frame.PlanePositionSequence = position
    frame.PlanePositionSequence[0].ImagePositionPatient = _decimal(*position[0].ImagePositionPatient)
    frame.FrameContentSequence = [Dataset()]
    content = frame.FrameContentSequence[0]
    content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number, [number]
    content.FrameAcquisitionNumber = 1
    return frame


def _shared_tags(shared, dataset, tags):
    """Set timing attributes in the functional groups of an enhanced file, and others in the file itself."""
    for keyword, value in tags.items():
        if keyword == "EchoTime":
            shared.MREchoSequence[0].EffectiveEchoTime = float(value)
        elif keyword in ("RepetitionTime", "FlipAngle", "EchoTrainLength"):
            setattr(shared.MRTimingAndRelatedParametersSequence[0], keyword, value)
        elif keyword == "InversionTime":
            from pydicom.dataset import Dataset

            shared.MRModifierSequence = [Dataset()]
            shared.MRModifierSequence[0].InversionRecovery = "YES"
            shared.MRModifierSequence[0].InversionTimes = [float(value)]
        else:
            setattr(dataset, keyword, value)
