"""The curated dataset: selection, groups, splits and shards."""
