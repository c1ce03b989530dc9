"""Networks by name, what a sample of them costs, and what they are trained for."""
