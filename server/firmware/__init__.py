"""How new versions reach devices: what may exist, who gets it when, and what stops it."""
