"""The console: where the NOC keeps the register, people, keys and authorities."""
