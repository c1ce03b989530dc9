"""The method against tuned baselines."""
