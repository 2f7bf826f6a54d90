"""The pages people read: the report of a run and the card of the dataset."""
