"""What visitors see on their own phones: a survey behind a code, no account, no cookie."""
