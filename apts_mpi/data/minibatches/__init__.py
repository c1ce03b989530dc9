"""Minibatches of a rank's part, from memory or from the disk."""
