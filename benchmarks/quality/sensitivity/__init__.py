"""Every parameter over its range."""
