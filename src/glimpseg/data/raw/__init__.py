"""Scans as the scanner gives them: is the head still there, are the sequences register, and what to do if not."""
