"""Which channels are removed."""
