"""Options of a segmentation: how a study is segmented, and which files are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

from glimpseg.errors import UsageError
from glimpseg.modality import Modality, parse

Raw: TypeAlias = Literal["auto", "no"]
"""Treatment of images that are not registered or not skull-stripped: `auto` does what is needed, `no` nothing."""
Level: TypeAlias = Literal["none", "quick", "full"]
"""Amount of uncertainty estimation. `none`: none. `quick`: estimated Dice, and one mirrored pass. `full`: estimated
Dice, all mirrored passes, and one pass without each sequence."""

DICOM_TYPES = frozenset({"dicom-seg", "dicom-labelmap", "dicom-sr"})
STUDY_TYPES = ("nifti", *sorted(DICOM_TYPES))
"""Output types of one study. NIfTI is always written."""
BIDS = "bids"
"""Output type of a tree of studies: one BIDS derivative of all studies, under `derivatives/`."""


@dataclass(frozen=True, kw_only=True)
class CommandLineOption:
    """Help text and flag of a field that is also an option of the command line."""

    help: str
    flag: str | None = None
    """Flag of the option. Default: `--` and the field's name with hyphens."""


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Options of inference for one study. The labels do not depend on `probabilities` and `uncertainty`.

    Args:
        grid: Sequence on whose grid the result lies, as a `Modality` or as text (`t2`). Default: the first that exists
            of T1c, T1, FLAIR, T2.
        raw: `auto` registers and skull-strips images that need it; the extras for that must then be installed. `no`
            takes the images as they are.
        probabilities: Keep a probability map for each region. The maps are calibrated if the model has temperatures.
        uncertainty: `none` runs the plain pass only. `quick` (default) adds one pass over the mirrored images. `full`
            mirrors along all axes and leaves out each sequence: up to eleven more passes (docs/trust.md).

    Raises:
        UsageError: For an unknown word.
    """

    grid: Annotated[
        Modality | str | None,
        CommandLineOption(help="Sequence on whose grid the result lies. Default: the first of T1c, T1, FLAIR, T2."),
    ] = None
    raw: Annotated[
        Raw,
        CommandLineOption(
            help="auto: register and skull-strip images that need it, if the extras are installed. "
            "no: the images are already registered and skull-stripped."
        ),
    ] = "auto"
    probabilities: Annotated[bool, CommandLineOption(help="Write a probability map for each region.")] = False
    uncertainty: Annotated[
        Level,
        CommandLineOption(
            help="Estimate the uncertainty of the result. quick: one more pass, over the mirrored images. "
            "full: up to eleven more passes. none: no estimate. The labels are the same."
        ),
    ] = "quick"

    def __post_init__(self) -> None:
        if self.raw not in get_args(Raw):
            raise UsageError(f"--raw is {' or '.join(get_args(Raw))}, not '{self.raw}'.")
        if self.uncertainty not in get_args(Level):
            raise UsageError(f"Uncertainty is {', '.join(get_args(Level))}, not '{self.uncertainty}'.")
        if isinstance(self.grid, str):
            object.__setattr__(self, "grid", parse(self.grid))

    @property
    def grid_sequence(self) -> Modality | None:
        """Sequence on whose grid the result lies, or None for the default."""
        assert not isinstance(self.grid, str), "text became a Modality when the options were made"
        return self.grid


PLAIN = InferenceOptions(uncertainty="none")
"""One plain pass: no uncertainty, no probabilities."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of the files that are written for each study.

    Args:
        labels: Label convention of `seg.nii.gz`: `brats2021`, `brats2023`, `brats2024` or another of
            `region.CONVENTIONS`, or spelled out, such as `1=ED,2=NCR,3=ET`.
        types: Output types, as a tuple or as text with commas. `nifti` is always written; `dicom-seg`, `dicom-labelmap`
            and `dicom-sr` need DICOM input; `bids` is for a tree of studies.
        deidentify: DICOM files name no patient. In a tree of studies, output folders are numbered, and the key to the
            numbers is written beside the output folder.

    Raises:
        UsageError: For an unknown convention or output type.
    """

    labels: Annotated[str, CommandLineOption(help="Label numbers to write: brats2021, brats2023, brats2024.")] = (
        "brats2024"
    )
    types: Annotated[
        tuple[str, ...] | str,
        CommandLineOption(
            flag="--output-type",
            help="nifti, dicom-seg, dicom-labelmap, dicom-sr, separated by commas; for a tree also bids.",
        ),
    ] = ("nifti",)
    deidentify: Annotated[bool, CommandLineOption(help="Write results that name no patient and no input folder.")] = (
        False
    )

    def __post_init__(self) -> None:
        from glimpseg.region import convention_named  # numpy, which the command line does not need for --help

        convention_named(self.labels)
        given = self.types.split(",") if isinstance(self.types, str) else self.types
        types = tuple(word.strip() for word in given)
        object.__setattr__(self, "types", types)
        refuse_unknown_types(types, (*STUDY_TYPES, BIDS))

    @property
    def study_types(self) -> tuple[str, ...]:
        """Output types that are written for each study: all but `bids`."""
        return tuple(kind for kind in self.types if kind != BIDS)


def refuse_unknown_types(types: tuple[str, ...], known: tuple[str, ...] = STUDY_TYPES) -> None:
    """Raise UsageError if an output type is not among the known ones; the message names the first by alphabet."""
    unknown = sorted(set(types) - set(known))
    if unknown:
        raise UsageError(f"'{unknown[0]}' is no output type. Choose of {', '.join(known)}.")
