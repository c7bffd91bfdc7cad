"""The retailer's pages: today beside the same weekday before, and what to make of it."""
