"""Communication against compute, the same work on more and more ranks.

Fixed data and work: N ranks divide the local steps or the minibatch of one.
Every run is split into phases on every rank. Writes strong.jsonl, a row for every
rank, repetition and phase, and strong.md; runs that are in strong.jsonl are not run again.
"""

from benchmarks.scaling.command import command

COMMAND = command("strong")
