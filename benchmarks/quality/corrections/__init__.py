"""Ways to join corrections."""
