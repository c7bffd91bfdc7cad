"""The technician's pages: a phone in one hand, at a shop's entrance."""
