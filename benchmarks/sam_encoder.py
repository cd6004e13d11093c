"""Time SAM's smallest image encoder (ViT-B, 89.7 million weights) for each slice.

    python benchmarks/sam_encoder.py [--sides 256 1024] [--slices 4] [--repeat 3] [--device cpu]

Weights are random: time does not depend on them. Contestants run in turns. Processor seconds (all threads
together) are shown beside clock seconds, because another program on the machine lengthens only the latter.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch

from glimpseg.priors.decoder import Decoder
from glimpseg.priors.sam import Encoder
from glimpseg.priors.settings import Prior


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_random(folder)
        encoders = {side: Encoder(Prior(kind="sam", weights=folder, side=side), wanted.device) for side in wanted.sides}
    pictures = np.random.default_rng(0).random((wanted.slices, 240, 240), np.float32)
    measured: dict[int, list[tuple[float, float]]] = {side: [] for side in encoders}
    for round_ in range(wanted.repeat + 1):
        for side, encoder in encoders.items():
            clock, processor = time.perf_counter(), time.process_time()
            encoder.features(pictures)
            if round_:  # the first warms up
                spent = time.perf_counter() - clock, time.process_time() - processor
                measured[side].append((spent[0] / wanted.slices, spent[1] / wanted.slices))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {wanted.device}, per slice:")
    least = min(statistics.median(processor for _, processor in times) for times in measured.values())
    for side, times in measured.items():
        clock, processor = (statistics.median(values) for values in zip(*times, strict=True))
        print(f"{side:5} px  clock {clock:.2f} s  processor {processor:.2f} s, {processor / least:.1f} x")
    decoder = sum(p.numel() for p in Decoder(encoders[wanted.sides[0]].channels, 4).parameters())
    print(f"a decoder has {decoder:,} weights")


def save_random(folder: str) -> None:
    """Save a random SAM of ViT-B's size in Hugging Face's layout."""
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    SamModel(SamConfig(initializer_range=0.02)).save_pretrained(folder)


if __name__ == "__main__":
    main()
