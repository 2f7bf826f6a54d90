"""How near two sets are: moments, Frechet and kernel distances, precision and recall, anatomy."""
