"""Captions as conditions of our own models: a published text encoder, CLIP or T5, and its embeddings."""
