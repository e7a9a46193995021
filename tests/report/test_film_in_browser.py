"""The film in a real browser, which runs the page without a driver: it loads the file and prints the DOM it made."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hostile_run import write_hostile_run
from synthetic_run import STEPS

from mmsr1.report.film import build_film, read_validation
from mmsr1.report.run import write_report
from mmsr1.run_directory import RunDirectory

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium on the PATH (apt-get install chromium)")


@pytest.fixture(scope="module")
def report(full_run: RunDirectory) -> Path:
    return write_report(full_run.path)


def dom_of(page: Path, profile: Path, hash_: str = "") -> str:
    """The DOM after the page's scripts and eight (virtual) seconds of its timers ran."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--dump-dom", f"file://{page}{hash_}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def with_driver(page: Path, script: str, target: Path) -> Path:
    """A copy of the page that lets a test's script act on it, which the page's own policy forbids."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    target.write_text(html.replace("</body>", f"<script>{script}</script></body>"))
    return target


def outcomes_shown(dom: str) -> list[str]:
    return re.findall(r'<button type="button" class="cell"[^>]*data-outcome="([a-z-]+)"', dom)


def counts_shown(dom: str) -> dict[str, int]:
    return {key: int(count) for key, count in re.findall(r'data-count="([^"]+)">(\d+)<', dom)}


def test_a_link_to_a_step_opens_the_film_there(report: Path, full_run: RunDirectory, tmp_path: Path) -> None:
    film = build_film(read_validation(full_run))
    assert film is not None
    dom = dom_of(report, tmp_path, "#step=5")
    position = STEPS.index(5)
    assert outcomes_shown(dom) == [cell.outcomes[position].key for cell in film.cells]
    expected = Counter(f"{cell.group} {cell.outcomes[position].key}" for cell in film.cells)
    assert {key: count for key, count in counts_shown(dom).items() if count} == expected
    assert ">5 (2 of 7)</output>" in dom
    # Each badge's mark follows its colour, so colour is never the only cue.
    badges = re.findall(
        r'class="cell".*?<svg class="badge"[^>]*data-outcome="([a-z-]+)"[^>]*><use href="#mark-([a-z-]+)"', dom
    )
    assert len(badges) == len(film.cells) and all(colour == mark for colour, mark in badges)


def test_without_a_link_the_last_step_is_shown_and_a_wrong_link_changes_nothing(
    report: Path, full_run: RunDirectory, tmp_path: Path
) -> None:
    film = build_film(read_validation(full_run))
    assert film is not None
    assert outcomes_shown(dom_of(report, tmp_path, "#step=999")) == [cell.outcomes[-1].key for cell in film.cells]


DRIVER = """
const log = [];
const now = () => document.getElementById("film-now").textContent;
const press = (key, target) => target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const cells = document.querySelectorAll(".cell");
press("ArrowLeft", document.body); log.push(now());
press("ArrowRight", document.body); press("ArrowRight", document.body); log.push(now());
cells[3].focus(); press("ArrowDown", cells[3]);
log.push([...cells].indexOf(document.activeElement), cells[4].tabIndex, cells[3].tabIndex);
press("ArrowLeft", cells[4]); log.push(now());
const slider = document.getElementById("film-step");
slider.value = 2; slider.dispatchEvent(new Event("input")); log.push(now());
location.hash = "#step=20";
setTimeout(() => {
  log.push(now());
  press("ArrowLeft", document.body); log.push(location.hash);
  document.getElementById("film-play").click(); log.push(document.getElementById("film-play").textContent, now());
  setTimeout(() => {
    log.push(document.getElementById("film-play").textContent, now());
    document.title = JSON.stringify(log);
  }, 5000);
}, 100);
"""


def test_keys_slider_link_and_play_move_the_film(report: Path, full_run: RunDirectory, tmp_path: Path) -> None:
    dom = dom_of(with_driver(report, DRIVER, tmp_path / "driven.html"), tmp_path / "profile")
    (title,) = re.findall(r"<title>(.*?)</title>", dom)
    assert title == (
        '["25 (6 of 7)","30 (7 of 7)",4,0,-1,"25 (6 of 7)","10 (3 of 7)",'
        '"20 (5 of 7)","#step=15","Pause","20 (5 of 7)","Play","30 (7 of 7)"]'
    )
    film = build_film(read_validation(full_run))
    assert film is not None
    cell = film.cells[4]
    assert f'id="detail-question">{cell.question}<' in dom
    assert f'id="detail-reply">{cell.replies[-1]}<' in dom
    assert f'id="detail-truth">{cell.truth}<' in dom
    history = re.findall(r'title="step (\d+): ([^"]+)"', dom)
    assert history == [(str(s), o.label) for s, o in zip(film.steps, cell.outcomes, strict=True)]


def test_hostile_text_runs_nowhere_even_without_the_policy(tmp_path: Path) -> None:
    run = write_hostile_run(tmp_path / "run")
    film = build_film(read_validation(run))
    page = write_report(run.path)
    visit = 'document.querySelectorAll(".cell").forEach((cell) => { cell.focus(); });'
    dom = dom_of(with_driver(page, visit, tmp_path / "driven.html"), tmp_path / "profile")
    assert "<title>owned</title>" not in dom
    assert "<img" not in dom and "<iframe" not in dom and "<b " not in dom
    assert film is not None and outcomes_shown(dom) == [cell.outcomes[-1].key for cell in film.cells]
    assert re.search(r'id="detail-question">[^<]*&lt;', dom)
