"""Signing in, invitations, passwords and second factors."""
