"""Which pictures show the same scene: thumbnails, and their alignment by a similarity transform."""
