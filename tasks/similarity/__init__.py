"""Which pictures show the same scene: their alignment by a similarity transform."""
