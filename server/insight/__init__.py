"""What counts mean beside sales: the tills' transactions, and conversion."""
