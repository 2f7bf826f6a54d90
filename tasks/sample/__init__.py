"""Sampling: the stage, generation on request, serving and export."""
