"""What the insight models promise, measured: each module here is one model's evaluation."""
