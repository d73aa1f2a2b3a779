"""One worker program per method; each runs in the environment of its library."""
