"""The page that a code at a device leads to: is it working, and what can be done on the spot."""
