"""The settings of a run: declared once, with their ranges, defaults and TOML."""
