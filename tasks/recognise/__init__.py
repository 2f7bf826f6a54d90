"""Recognition: the category of each person, from landmarks and from pixels."""
