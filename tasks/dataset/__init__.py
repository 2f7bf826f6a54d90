"""The curated dataset: near-copies and splits, square crops, pose maps, shards."""
