"""Network parts that several methods use unchanged."""
