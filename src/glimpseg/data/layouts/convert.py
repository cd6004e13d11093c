"""Studies of one layout as another: what one tool left, the next can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glimpseg.data.layouts.find import LAYOUTS, layout_named
from glimpseg.data.layouts.layout import refuse_duplicates, usable_id
from glimpseg.errors import UsageError
from glimpseg.study import Study


def write_studies(folder: str | Path, studies: Sequence[Study], layout: str) -> Path:
    """Writes studies in a layout, the whole folder or nothing; returns it. Voxels and affines stay as they are, labels
    are numbered as the layout has them.

    Raises: UsageError if the layout cannot be written, two studies have one id, or the folder holds files; InputError
        for a study that cannot be read or stored so; OutputError when the disk refuses.
    """
    writer = layout_named(layout).write
    if writer is None:
        offered = ", ".join(name for name, known in LAYOUTS.items() if known.write)
        raise UsageError(f"The layout {layout} is read only. Write one of {offered}.")
    refuse_duplicates([usable_id(study.id) for study in studies], layout)
    writer(Path(folder), studies)
    return Path(folder)
