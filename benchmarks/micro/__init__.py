"""Allreduce and Bcast by size."""
