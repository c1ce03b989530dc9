"""Checkpoints: sealed files of nested states, and the folders that hold them."""
