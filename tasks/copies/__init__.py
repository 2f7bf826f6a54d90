"""The copy test: views, nearest neighbours, calibrated scores, the certificate and its figures."""
