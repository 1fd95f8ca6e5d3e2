"""Fast implementations of ops for the CPU that need no extension: blocked products and gathers of PyTorch."""
