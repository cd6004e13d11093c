"""Parts of networks that two papers or more use unchanged."""
