"""Measure the largest tumours in the phantoms of the shipped model's training.

`python tools/derive/training_volumes.py [--model box] [--cases 60] [-o FILE]` writes
`src/glimpseg/model/training_volumes.json`. The phantoms are the first of the model's stream (the same seeds and
population), in voxels of 4 mm. Other generators in FILE stay. Deterministic; a minute of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glimpseg import phantom
from glimpseg.model.loading import load_model
from glimpseg.region import Region

TARGET = Path(__file__).parents[2] / "src/glimpseg/model/training_volumes.json"
SPACING_MM = 4.0


def main() -> None:
    """Generate the phantoms and write the largest volume of each region."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="box")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path, default=TARGET)
    wanted = parser.parse_args()
    stream = load_model(wanted.model).recipe.data.stream
    assert stream is not None, "the model was trained on studies, and its provenance has their volumes"
    settings, largest = stream.settings(SPACING_MM), dict.fromkeys((region.name for region in Region), 0.0)
    for seed in range(stream.first_seed, stream.first_seed + wanted.cases):
        labels = phantom.generate(seed, settings).labels.numpy()
        for region in Region:
            largest[region.name] = max(largest[region.name], float(region.mask(labels).sum()) * SPACING_MM**3 / 1000)
    made = {"cases": wanted.cases, "first_seed": stream.first_seed, "spacing_mm": SPACING_MM}
    tree = json.loads(wanted.output.read_text("utf-8")) if wanted.output.exists() else {}
    tree[stream.name] = {"made": made, "largest_ml": {name: round(ml, 1) for name, ml in largest.items()}}
    wanted.output.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    print(wanted.output.read_text("utf-8"))


if __name__ == "__main__":
    main()
