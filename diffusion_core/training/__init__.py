"""Training: the loop, its learning rate, averages of the weights, devices and ranks."""
