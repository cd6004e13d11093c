"""Quality control of one segmentation: rules that find reasons to look at a result, and their review."""
