"""Tests that start a real Slurm."""
