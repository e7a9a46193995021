"""The report of a study: `python -m mmsr1.report.study outputs/<study> [--missing] [--out FOLDER] [--beside STUDY]`.

Written are report.html (one file, no network), figures/*.png and *.svg, results.md, results.csv (a line a run),
dynamics.csv, and the config.yaml of one run. Runs that are missing, failed or damaged are gaps: they are told first,
and are in no figure. `--missing` writes nothing: it prints one command a line that fills each gap, and exits with 1 if
there is any.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from mmsr1.cli import CommandParser, refuse
from mmsr1.report.study.page import write_study
from mmsr1.report.study.runs import Study, read_study
from mmsr1.report.text import one_line
from mmsr1.sweep import Planned, command_of, planned
from mmsr1.sweep.plan import FILE, run_dir


def main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m mmsr1.report.study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a study, like outputs/search_penalty")
    parser.add_argument(
        "--missing", action="store_true", help="print the commands that fill the gaps, and nothing else"
    )
    parser.add_argument("--out", type=Path, help="where to write the report; the study's folder if not given")
    parser.add_argument("--reference", help="the arm that others are held against; by default the first")
    beside = "of another study, whose arms are drawn in grey beside these in accuracy against calls"
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help=beside)
    given = parser.parse_args(arguments)
    if given.out is not None and given.out.exists() and not given.out.is_dir():
        refuse(f"--out={given.out}: is a file; name a folder")
    try:
        study, jobs = _read(given.folder)
        if given.missing:
            return _missing(study, jobs)
        beside = None if given.beside is None else _read(given.beside)[0]
        page = write_study(study, given.out or given.folder, given.reference, beside)
    except (ValueError, OSError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        return 130
    for gap in study.gaps:
        sys.stderr.write(f"{one_line(gap.folder)}: {gap.status}{f', {gap.reason}' if gap.reason else ''}\n")
    sys.stdout.write(f"{len(study.runs)} of {len(study.runs) + len(study.gaps)} runs; report: {page}\n")
    return 0


def _read(folder: Path) -> tuple[Study, Sequence[Planned]]:
    """The study and its jobs, as far as anyone knows them."""
    jobs = planned(folder) if (folder / FILE).is_file() else None
    return read_study(folder, None if jobs is None else [job.folder for job in jobs]), jobs or ()


def _missing(study: Study, jobs: Sequence[Planned]) -> int:
    """A damaged run cannot be resumed: its command puts it aside, below what the report looks at, and starts anew."""
    known = {job.folder.resolve(): job for job in jobs}
    for gap in study.gaps:
        job = known.get(gap.folder.resolve())
        if gap.status == "running":
            sys.stderr.write(f"{one_line(gap.folder)}: {gap.reason}; there is no command for it\n")
        elif gap.status != "damaged" and (job or (gap.folder / "config.yaml").is_file()):
            sys.stdout.write(f"{command_of(job or Planned((), gap.folder))}\n")
        elif job is None:
            sys.stderr.write(f"{one_line(gap.folder)}: {gap.reason or gap.status}; no {FILE} says how it was made\n")
        else:
            aside = _free(study.folder / "damaged" / gap.folder.name)
            moved = (
                f"{shlex.join(['mkdir', '-p', str(aside.parent)])} && {shlex.join(['mv', str(gap.folder), str(aside)])}"
            )
            anew = shlex.join(["python", "train.py", *job.overrides, run_dir(job.folder)])
            sys.stdout.write(f"{moved} && {anew}\n")
    return 1 if study.gaps else 0


def _free(path: Path) -> Path:
    paths = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in count(1))
    return next(one for one in paths if not one.exists())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
