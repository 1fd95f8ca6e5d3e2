"""Old import paths of dqcore, kept."""
