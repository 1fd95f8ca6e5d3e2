"""Ours against what the classes of taming did, recorded with ``record.py``."""

import dqcore.compat.taming as ours

LIBRARY, OURS = "taming", ours


def test_does_what_theirs_did(recorded, check_trace):
    check_trace(recorded)
