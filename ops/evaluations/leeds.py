"""Leeds' hourly counts of people in its streets, which no one made for this, where they are."""

from pathlib import Path

LEEDS = Path(__file__).parents[3] / "shared/data/leeds_footfall_2009_2014.csv.gz"
"""Published by the city, and not a part of this project: whoever reads it can do without."""
