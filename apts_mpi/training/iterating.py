"""One outer iteration on this rank, and what becomes of losses that are not finite."""

from __future__ import annotations

from apts_mpi.errors import AgreedError, InputError
from apts_mpi.files.streams import write_error
from apts_mpi.method.iteration import Iteration
from apts_mpi.training.build import Run


class Iterating:
    """Calls the optimizer of a run; the first loss that is not finite is reported once a run."""

    def __init__(self, run: Run) -> None:
        self._run, self._warned = run, False

    def iterate(self, number: int, part: float) -> Iteration:
        """One outer iteration; every rank calls it.

        Args:
            number: of the iteration, from 1. part: of the run's work that is done, 0 to 1.

        Raises:
            AgreedError: on every rank, where no step leads to a finite loss.
        """
        run, comm = self._run, self._run.comm
        for each in run.subdomains:
            each.strange = None
        try:
            with comm.clock.phase("algebra", f"iteration {number}"):
                run.optimizer.done = part
                result = run.optimizer.iterate(*[each.draw for each in run.subdomains])
        except FloatingPointError as error:  # the same on every rank
            line = str(error)
            strange = self._strange()
            (many,) = comm.sum_scalars([float(strange is not None)])
            if many < comm.size:  # bad samples, rather than steps that are too long
                own = f"a loss of rank {comm.rank} on {comm.host} is {strange}"
                who = comm.first_error(InputError(own) if strange is not None else None)
                line += f" ({who})" if who else ""
            raise AgreedError(line, status=1) from error
        strange = self._strange()
        if strange is not None and not self._warned:
            self._warned = True
            write_error(
                f"apts_mpi: warning: rank {comm.rank} on {comm.host}: a loss of iteration "
                f"{number} is {strange} and was passed over; look for bad samples in its part "
                "if it comes again\n"
            )
        return result

    def _strange(self) -> float | None:
        """A loss of this rank's subdomains that was not finite in the last iteration."""
        return next((s.strange for s in self._run.subdomains if s.strange is not None), None)
