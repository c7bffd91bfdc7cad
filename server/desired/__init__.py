"""What devices are to be: layers of settings, why a value is as it is, what became of it."""
