"""What the method adds to its evaluations."""
