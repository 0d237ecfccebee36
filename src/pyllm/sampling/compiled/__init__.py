"""The chain of steps as one compiled function. But for `slots`, imported only where kernels are compiled."""
