"""Collectives by size."""
