"""Half an hour of one run."""
