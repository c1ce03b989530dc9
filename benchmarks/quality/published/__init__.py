"""The authors' published curves."""
