"""Parts of `realism.py`: cases, statistics, the network that tells patches apart, pictures."""
