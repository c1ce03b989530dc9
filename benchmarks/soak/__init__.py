"""Whether a long run stays as it was: memory, open files, speed."""
