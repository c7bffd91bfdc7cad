"""The register everyone asks: organisations, sites, doors, spots, devices, assignments."""
