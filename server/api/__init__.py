"""The API of /v1: typed questions in, JSON or CSV out, one organisation at a time."""
