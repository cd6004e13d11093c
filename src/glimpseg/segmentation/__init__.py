"""Segment one study: inputs, memory, inference, uncertainty, result."""
