"""What every benchmark has in common; commands import it, and never each other.

A command is one ``Command`` (``command``), named ``COMMAND`` in its module, which declares

- ``options``: ``option("--ranks", type=numbers(1), default=(1,), help=...)``, with parsers of
  ``options`` that check ranges and names (``number``, ``numbers``, ``some_of``), and ``timeout``,
  ``MNIST``, ``WORK``. --fresh, --report-only and --out are every command's own.
- ``plan(session)``: yields rounds of ``Job``s (``measure``): a task by name, a number of ranks, and
  ``Piece``s. A piece has the settings of its rows (by which they are looked up: what is there is
  not measured again, unless it is of an earlier version of the method: ``methods``), arguments for
  the task, and ``keep``, which makes the rows. A round is
  measured before the next one is asked for; so a plan may look at ``session.results``. Most plans
  yield one round. A job may be started otherwise than by mpirun: ``start=partial(hosts.mpirun,
  settings=...)`` within ``with Hosts(...) as hosts``, where ``session.missing(jobs)`` says before
  whether there is anything to do; ``start=partial(mpirun, ranks, launch=...)``.
- ``section(rows, options)``: a ``Section`` (``sections``) of paragraphs, tables, findings and
  pictures. It is written as NAME.md, and serves as a section of the page of ``report``.
- ``check``, ``draw``, ``verdict``, ``libraries`` where it needs them.

The task is a function in a module of the command, ``task(comm, folder, **arguments)``; every rank
calls it, through the one ``worker``, and what it returns (JSON) comes back by rank as
``Outcome.values``, with the folder and the seconds. An error that all ranks raise together (an
``AgreedError``, a loss that is not finite) fails its piece, and the job continues; a job that dies
is started again behind the piece it died in. ``worker.program`` is the task that runs the program's
own command line. ``benchmarks/cost/overhead.py`` is an example in full.
"""
