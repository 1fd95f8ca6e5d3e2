"""``dqcore demo``: train on the photographs that come with the package, and write a report.

``run.py`` is the verb, one call of recipe ``small`` for each stage; ``galleries.py`` draws the pictures that the report
shows of the prior.
"""
