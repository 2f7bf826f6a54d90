"""The sections of `params.yaml`, one module a concern; `tasks.params` puts them together."""
