"""Raw scans: check skull-stripping and registration, then register the sequences and find the brain if needed."""
