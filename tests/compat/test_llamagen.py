"""Ours against what the classes of llamagen did, recorded with ``record.py``."""

import dqcore.compat.llamagen as ours

LIBRARY, OURS = "llamagen", ours


def test_does_what_theirs_did(recorded, check_trace):
    check_trace(recorded)
