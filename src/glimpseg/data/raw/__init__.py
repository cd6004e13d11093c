"""Scans as the scanner gives them: is the head still there, are the sequences registered, and what to do if not."""
