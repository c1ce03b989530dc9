"""Shards: their format on disk, how they are cut, written, read and checked."""
