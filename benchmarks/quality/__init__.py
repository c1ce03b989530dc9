"""How well the method trains: accuracy at equal work."""
