"""One vector between hosts."""
