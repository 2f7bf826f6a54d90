"""The built-in data: articulated mannequins whose joints are known."""
