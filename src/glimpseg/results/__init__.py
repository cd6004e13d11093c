"""Evaluations and comparisons on disk: scores, statistics, summaries, tables."""
