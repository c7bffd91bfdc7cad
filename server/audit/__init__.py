"""Who did what: a chain of hashes that is only ever added to."""
