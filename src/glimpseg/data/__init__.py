"""Data pipeline: from image files of any kind to prepared studies and batches of crops."""
