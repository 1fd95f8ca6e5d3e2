"""The command line, ``dqcore VERB``: a file for each verb, found by its name."""

from dqcore.cli.dispatch import VERBS, main

__all__ = ["VERBS", "main"]
