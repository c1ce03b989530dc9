"""Whether a stream from disk keeps a training loop fed."""
