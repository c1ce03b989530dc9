"""The version, of which results, checkpoints and the package's metadata speak."""

__version__ = "0.1.0"
