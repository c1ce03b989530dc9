"""Ways to join a vector: flat or hierarchical, in 32 or 16 bits."""
