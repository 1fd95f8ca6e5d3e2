"""The command line, ``dqcore VERB``: each verb has a file of its name, and ``dispatch.py`` lists them."""

from dqcore.cli.dispatch import VERBS, main

__all__ = ["VERBS", "main"]
