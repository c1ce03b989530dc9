"""Damaged files and faults in running jobs: what is read is refused or right, what runs ends."""
