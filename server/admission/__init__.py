"""Who is thrown out of the broker and let in again: orders, deny-list, revocation list."""
