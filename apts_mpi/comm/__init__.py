"""Messages between ranks: the communicator, its collectives, their timing and their watch."""
