"""Version of the package, and the notice that every output carries."""

__version__ = "0.1.0"

NOT_A_DEVICE = "Research software, not a medical device: not for diagnosis or treatment."
