"""What the baseline does beyond the contract."""

import torch

from conftest import small_recipe
from glimpseg import methods
from glimpseg.modality import SUBSETS, as_mask


def test_a_silent_sequence_is_not_an_absent_one():
    """The network is told what is present; group norms keep it."""
    torch.manual_seed(1)
    network = methods.build(small_recipe()).eval()
    silent = torch.randn(1, 4, 16, 16, 16)
    silent[:, 1] = 0
    everything = as_mask(SUBSETS[-1])[None]
    with torch.inference_mode():
        present, absent = network(silent, everything), network(silent, everything & ~as_mask(SUBSETS[1]))
    assert (present - absent).abs().max() > 1e-4
