"""Prior (pseudo-label) maps of training studies: one label map for each sequence."""
