"""Segment a tree of studies: locally, with Ray or as Slurm jobs."""
