"""Train a method: dataset, checks, loop, logger, compilation."""
