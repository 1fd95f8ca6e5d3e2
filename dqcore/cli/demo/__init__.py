"""``dqcore demo``: train on the photographs that come with the package, and write a report.

``run.py`` is the verb; ``tokenizer.py`` and ``prior.py`` train the two stages; ``galleries.py`` draws the pictures that
the report shows of the prior.
"""
