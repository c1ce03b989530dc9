"""Time to an accuracy over narrow links."""
