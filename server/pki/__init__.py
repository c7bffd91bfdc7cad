"""Certificates: the fleet's roots, its authorities and what they sign."""
