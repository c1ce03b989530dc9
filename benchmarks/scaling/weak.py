"""Communication against compute, the same work per rank on more and more ranks.

Fixed work per rank: N ranks do N times the work of one between two messages.
Every run is split into phases on every rank. Writes weak.jsonl, a row for every
rank, repetition and phase, and weak.md; runs that are in weak.jsonl are not run again.
"""

from benchmarks.scaling.command import command

COMMAND = command("weak")
