"""Numbers that the authors' codes computed, and how they are compared with ours."""
