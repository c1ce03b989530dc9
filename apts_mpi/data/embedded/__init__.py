"""Data shipped with the package; see README.md here for their source and licence."""
