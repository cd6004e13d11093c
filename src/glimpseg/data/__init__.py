"""From files to normalised crops, and the digital phantom."""
