"""Convex problems and the initial radius."""
