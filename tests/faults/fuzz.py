"""``python -m tests.faults.fuzz``: damaged files of every kind that the program reads.

Each must be read as it was before, or be refused with one clean line; where a format has no
checksums, it may be read as another good file. Anything else is wrong: another exception, a crash,
a hang, much memory, code that runs, other data taken for the good ones.

Guided by coverage: an input that reaches a line of the package that none of its kind has reached
before is kept, and changed further. So an input depends on those before it in the same command;
those that are wrong are kept as files.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .asking import LIMIT, Answer, Reader
from .damage import DAMAGES, Rng, no_file, oversized
from .outcomes import Input, as_json, as_markdown, table
from .subject import MARK, Subject
from .subjects import SUBJECTS

FORGED_TURNS = 4  # of a way that makes sound files, for one of another, which checksums stop
FURTHER = 0.3  # share of inputs that are made from one that was kept
MOST_CHANGES = 4  # of an input, one upon the other
MOST_KEPT = 2**20  # bytes of a file that is changed further


@dataclass(frozen=True)
class Way:
    """A way to change a file. ``forged``: so that it is a good file of its format again."""

    name: str
    change: Callable[[Rng, Path], None]
    forged: bool = False


@dataclass(frozen=True)
class Kept:
    """A changed file that reached something new, and the ways it was changed in."""

    file: str
    content: bytes
    ways: tuple[Way, ...]


def _damage(damage: Callable[[Rng, bytes, bytes], bytes], rng: Rng, path: Path) -> None:
    others = sorted(p for p in path.parent.glob(f"*{path.suffix}") if p != path and p.is_file())
    other = others[rng.integers(len(others))].read_bytes() if others else path.read_bytes()[::-1]
    path.write_bytes(damage(rng, path.read_bytes(), other))


def ways(subject: Subject) -> list[Way]:
    """The ways to change files of a kind, as they take turns."""
    forged = [Way(name, change, True) for name, change in subject.forgeries.items()]
    plain = [Way(name, functools.partial(_damage, change)) for name, change in DAMAGES.items()]
    nothing = functools.partial(no_file, pipe=subject.pipe)
    plain += [Way("no file", nothing), Way("oversized", oversized)]
    both = [way for pair in itertools.zip_longest(forged, plain) for way in pair if way]
    return both + forged * (FORGED_TURNS - 1)


class Fuzz:
    """Makes inputs, has them read and judges what came of it.

    Args:
        folder: to work in. seed: of all inputs. subjects: names of the kinds.
        failures: folder that the wrong ones are kept in. known: the kinds by name.
        limit: seconds for an input. module: the program that reads. python: runs it.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        subjects: Sequence[str],
        failures: Path,
        *,
        known: Mapping[str, Subject] = SUBJECTS,
        limit: float = LIMIT,
        module: str = "tests.faults.reader",
        python: str = sys.executable,
    ) -> None:
        self._folder, self._seed, self._failures, self._limit = folder, seed, failures, limit
        self._subjects = [known[name] for name in subjects]
        self._ways = {subject.name: ways(subject) for subject in self._subjects}
        environment = {"APTS_MPI_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        os.environ.update(environment)  # for what is made here
        self._reader = Reader(subjects, environment, module, python)
        self._good: dict[str, dict[str, tuple[str, str]]] = {}
        self._reached: set[str] = set()
        self._kept: dict[str, list[Kept]] = {name: [] for name in subjects}

    def good(self, subject: Subject) -> Path:
        """The folder of a subject's good files, which are made and read on first use."""
        folder = self._folder / "good" / subject.name.replace(" ", "-")
        if subject.name not in self._good:
            folder.mkdir(parents=True)
            subject.make(folder)
            answer = self._reader.ask(subject.name, self._copy(folder))
            if answer.died or any(kind != "accepted" for kind, _ in answer.found.values()):
                raise RuntimeError(
                    f"good files of {subject.name} are not read: {answer.died or answer.found}"
                )
            self._good[subject.name] = answer.found
            self._reached |= answer.reached
        return folder

    def _copy(self, good: Path) -> Path:
        work = self._folder / "input"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        return work

    def one(self, number: int) -> Input:
        """Input of that number, made, read and judged; kept if it is wrong."""
        rng = np.random.default_rng((self._seed, number))
        subject = self._subjects[number % len(self._subjects)]
        good, turns = self.good(subject), self._ways[subject.name]
        # Every way in its turn, so that few inputs have all of them.
        way = turns[number // len(self._subjects) % len(turns)]
        work, path, before = self._changed(rng, subject, way, good)
        answer = self._reader.ask(subject.name, work, self._limit)
        done = (*before, way)
        outcome, why = self._judge(subject, any(each.forged for each in done), work, answer)
        result = Input(
            number, subject.name, way.name, tuple(w.name for w in before), path.name, outcome, why
        )
        new = answer.reached - self._reached
        self._reached |= answer.reached
        if outcome == "wrong":
            kept = self._failures / f"{self._seed}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(work, kept, symlinks=True, ignore=_pipes)
            (kept / "why.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
        elif new and len(done) < MOST_CHANGES and _is_small(path):
            file = str(path.relative_to(work))
            self._kept[subject.name].append(Kept(file, path.read_bytes(), done))
        return result

    def _changed(
        self, rng: Rng, subject: Subject, way: Way, good: Path
    ) -> tuple[Path, Path, tuple[Way, ...]]:
        """A folder with a changed file, that file, and how it had been changed before.

        Only what is sound is made into something sound: a library that changes a damaged file may
        crash, and this process with it.
        """
        work = self._copy(good)
        kept = self._kept[subject.name]
        if way.forged:
            kept = [each for each in kept if all(w.forged for w in each.ways)]
        if kept and rng.random() < FURTHER:
            chosen = kept[rng.integers(len(kept))]
            path = work / chosen.file
            path.write_bytes(chosen.content)
            try:
                way.change(rng, path)
            except Exception:  # there is nothing of that kind left in it to be changed
                work = self._copy(good)
            else:
                return work, path, chosen.ways
        paths = sorted(path for pattern in subject.files for path in work.glob(pattern))
        path = paths[rng.integers(len(paths))]
        way.change(rng, path)
        return work, path, ()

    def _judge(self, subject: Subject, forged: bool, work: Path, answer: Answer) -> tuple[str, str]:
        if answer.died:
            return "wrong", answer.died
        if list(work.rglob(MARK)):
            return "wrong", "code in the file was run"
        named = not (subject.steers and (forged or not subject.checked))
        refused, other = "", ""
        for question, (kind, text) in answer.found.items():
            if kind == "wrong":
                return "wrong", f"{question}: {text}"
            if kind == "refused":
                refused = refused or text
                if named and str(work) not in text:
                    return "wrong", f"{question}: the line names no file: {text}"
            elif text != self._good[subject.name][question][1]:
                other = question
        if other and not forged and subject.checked:
            return "wrong", f"{other}: other data are taken for the good ones"
        if other and subject.plain is not None:
            try:
                plain = subject.plain(work)
            except Exception as error:
                return "wrong", f"{other}: accepted, but {type(error).__name__}: {error}"
            if plain != answer.found[other][1]:
                return "wrong", f"{other}: the data are not what the file says"
        if refused:
            return "refused", refused
        return ("other" if other else "harmless"), ""

    def close(self) -> None:
        """End the process that reads."""
        self._reader.end()


def _is_small(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= MOST_KEPT


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_fifo()]


@contextmanager
def fuzzing(seed: int, subjects: Sequence[str], failures: Path, **more: Any) -> Iterator[Fuzz]:
    """A ``Fuzz`` in a folder of its own, which is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        fuzz = Fuzz(Path(folder), seed, subjects, failures, **more)
        try:
            yield fuzz
        finally:
            fuzz.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where any input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--files", nargs="*", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--failures", type=Path, metavar="DIR", help="keeps what went wrong")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="results as Markdown")
    given = parser.parse_args(arguments)
    failures = given.failures or Path(tempfile.mkdtemp(prefix="fuzz-failures-"))
    results = []
    with fuzzing(given.seed, given.files, failures) as fuzz:
        numbers = range(given.first, given.first + given.inputs)
        for number in tqdm(numbers, unit="input", mininterval=2.0):
            results.append(fuzz.one(number))
            if results[-1].outcome == "wrong":
                each = results[-1]
                tqdm.write(f"{number}: {each.subject}, {each.way}, {each.file}: {each.why}")
    print(table(results))
    if given.out:
        given.out.write_text(as_json(results, given.seed) + "\n", encoding="utf-8")
    if given.report:
        command = "python -m tests.faults.fuzz " + " ".join(arguments or sys.argv[1:])
        given.report.write_text(as_markdown(results, command), encoding="utf-8")
    wrong = sum(each.outcome == "wrong" for each in results)
    if wrong:
        print(f"{wrong} wrong; they are in {failures}")
    elif not given.failures:
        failures.rmdir()
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
