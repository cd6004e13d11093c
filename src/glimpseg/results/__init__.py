"""Evaluations on disk: scores, statistics, summaries, tables."""
