"""Write studies of one layout in another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glimpseg.data.layouts.find import LAYOUTS, layout_named
from glimpseg.data.layouts.layout import refuse_duplicates, usable_id
from glimpseg.errors import UsageError
from glimpseg.study import Study


def write_studies(folder: str | Path, studies: Sequence[Study], layout: str) -> Path:
    """Write studies in a layout, atomically, and return the folder.

    Voxels and affines stay as they are. Labels get the numbers of the layout.

    Raises:
        UsageError: if the layout cannot be written, two studies have one id, or the folder holds files.
        InputError: if a study cannot be read or stored in this layout.
        OutputError: if writing fails.
    """
    writer = layout_named(layout).write
    if writer is None:
        offered = ", ".join(name for name, known in LAYOUTS.items() if known.write)
        raise UsageError(f"The layout {layout} is read only. Write one of {offered}.")
    refuse_duplicates([usable_id(study.id) for study in studies], layout)
    writer(Path(folder), studies)
    return Path(folder)
