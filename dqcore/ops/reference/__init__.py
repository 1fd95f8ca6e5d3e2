"""The specification of every op: plain differentiable PyTorch that the fast implementations must equal.

A reference is what an op runs in float64, on ``dqcore.backend("reference")`` and wherever no faster implementation is
available; tests compare every other implementation with it. It knows neither the registry nor any kernel.
"""
