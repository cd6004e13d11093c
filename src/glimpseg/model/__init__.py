"""Model folders: read, written, shipped, imported, exported."""
