"""Numbers that the authors' codes computed, and their comparison with ours."""
