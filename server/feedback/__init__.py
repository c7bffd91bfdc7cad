"""What kiosks say: indices of answers, with the intervals that make them honest."""
