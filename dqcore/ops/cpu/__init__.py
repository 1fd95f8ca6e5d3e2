"""Fast implementations of ops for the CPU, in PyTorch alone; they need neither the extension nor Triton."""
