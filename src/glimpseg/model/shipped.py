"""Model that comes with the package: its name and its folder."""

from __future__ import annotations

from pathlib import Path

from glimpseg.data.notices import warn
from glimpseg.errors import ModelError

BOX = "box"
"""Name of the model that comes with the package, wherever a model is asked for."""
WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
"""Folder of the package whose folders are models."""


def place_of(model: str | Path) -> Path:
    """Return the path of a model. The text `box` names the model in the package, everything else is a path.

    A folder of the user that is called `box` is named `./box`, or by a `Path`.

    Raises: ModelError if the package came without its model.
    """
    if isinstance(model, Path) or model != BOX:
        return Path(model)
    if Path(BOX).is_dir():
        warn(f"`{BOX}` is the model that comes with glimpseg; the folder of that name here is ./{BOX}.")
    if not (WEIGHTS_FOLDER / BOX).is_dir():
        raise ModelError(
            "The model `box`, which is used where no other is named, is not part of this installation: a source "
            "checkout has it once tools/ship.py has put it there. Install glimpseg from its wheel, or name a folder "
            "that `glimpseg train` wrote, with -m or model=."
        )
    return WEIGHTS_FOLDER / BOX
