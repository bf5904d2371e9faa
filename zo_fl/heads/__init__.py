"""Last layers from forward passes: in closed form, or by rounds on the last layer alone."""
