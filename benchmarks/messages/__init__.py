"""What messages cost: between ranks, hosts and methods."""
