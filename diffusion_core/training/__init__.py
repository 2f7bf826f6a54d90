"""Training: the loop, its clock, averages of the weights, devices and ranks."""
