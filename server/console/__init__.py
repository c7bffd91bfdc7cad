"""Pages of those who run fleets: organisations, sites, devices, people, the audit."""
