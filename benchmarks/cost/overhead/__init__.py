"""What the method adds to the evaluations that it makes."""
