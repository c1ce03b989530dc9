"""Whether a stream keeps a loop fed."""
