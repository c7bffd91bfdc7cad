"""People: users, what they may, and their sessions."""
