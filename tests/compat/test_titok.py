"""Ours against what the classes of titok did, recorded with ``record.py``."""

import dqcore.compat.titok as ours

LIBRARY, OURS = "titok", ours


def test_does_what_theirs_did(recorded, check_trace):
    check_trace(recorded)
