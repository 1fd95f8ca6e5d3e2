"""Other libraries' quantizers on dqcore's kernels, a module for each library; and old import paths of dqcore, kept.

Nothing is imported here: ``dqcore.compat.moved`` serves ``import dqcore`` itself.
"""
