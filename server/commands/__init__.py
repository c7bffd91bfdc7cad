"""What devices are to do, once: commands, from the order to the outcome."""
