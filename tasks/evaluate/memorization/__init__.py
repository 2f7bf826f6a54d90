"""The memorization test: copy scores, their calibration, and the certificate."""
