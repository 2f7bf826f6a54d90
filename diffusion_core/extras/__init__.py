"""Less common methods: variational bounds, learned variance, other corruptions, closed-form denoisers."""
