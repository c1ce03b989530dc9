"""The method as it is against tuned baselines."""
