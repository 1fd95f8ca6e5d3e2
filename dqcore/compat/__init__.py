"""Old import paths of dqcore, which keep working."""
