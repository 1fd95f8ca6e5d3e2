"""Drawing code sequences from a prior, token by token."""
