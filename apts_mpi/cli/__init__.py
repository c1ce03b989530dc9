"""The commands: their flags, and what each of them builds and calls."""
