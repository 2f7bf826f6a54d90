"""Judging samples: memorization, fidelity, pose accuracy, membership inference."""
