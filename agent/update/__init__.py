"""Updates of what runs here. Empty: the launcher imports this package and nothing else of ours."""
