"""Kernels that encode and decode blocks, in Python for numba; imported only where they are compiled."""
