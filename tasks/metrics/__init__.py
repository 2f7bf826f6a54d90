"""Distances between sets, features, nearest neighbours, and membership inference."""
