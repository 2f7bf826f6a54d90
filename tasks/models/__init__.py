"""The two models: their examples, conditions, networks and files, and sampling from them."""
