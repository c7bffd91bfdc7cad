"""Rollups: time buckets and opening hours, the deriver of hours and days, and counts read back."""
