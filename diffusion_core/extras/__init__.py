"""Methods beside the common path: variational bounds, learned variance, other corruptions, closed forms."""
