"""Score segmentations: protocols, metrics of every subset, comparisons, calibration, published tables."""
