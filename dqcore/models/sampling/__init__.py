"""Drawing code sequences from a prior, token by token; :mod:`dqcore.models.sampling.naive` says what is drawn."""
