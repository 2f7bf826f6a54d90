"""Validation that costs no data: short trainings on parts of it say how long the whole of it may be trained on."""
