"""The typed model of `params.yaml`."""
