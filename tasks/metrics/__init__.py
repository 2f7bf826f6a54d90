"""Distances between sets, features, nearest neighbours, and loss gaps."""
