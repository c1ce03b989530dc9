"""MNIST against the authors' curves."""
