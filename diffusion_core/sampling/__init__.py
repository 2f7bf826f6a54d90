"""Sampling: the loop, solvers, and the timesteps they visit."""
