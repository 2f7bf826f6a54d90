"""Personalisation of published models: LoRA on the pictures of a folder or of the shards."""
