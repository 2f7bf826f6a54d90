"""The models of a run: examples, conditions, networks, files, and sampling from them."""
