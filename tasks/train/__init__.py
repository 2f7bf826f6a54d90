"""Training: the stage, its data, loop, evaluation, early stopping and resumption."""
