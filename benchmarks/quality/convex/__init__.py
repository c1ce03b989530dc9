"""Whether the first radius matters."""
