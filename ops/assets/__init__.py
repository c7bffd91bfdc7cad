"""The pages' third-party files: pinned npm packages, fetched at set-up, none committed."""
