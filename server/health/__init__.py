"""What is wrong, since when, why, and who is told: presence, conditions, episodes, incidents."""
