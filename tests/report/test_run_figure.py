"""The picture of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from synthetic_run import encode, make_examples, start, write_validation

from mmsr1.report.figure import draw_figure, main
from mmsr1.run_directory import RunDirectory


def test_a_run_becomes_a_picture(full_run: RunDirectory, tmp_path: Path) -> None:
    out = draw_figure(full_run.path, tmp_path / "docs" / "learned.png")
    with Image.open(out) as image:
        assert image.width == 2080 and image.height > 700
        # Green, blue and vermilion of the marks and curves are on it.
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(0x00, 0x9E, 0x73), (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_one_validation_without_curves_is_drawn_as_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(RunDirectory(tmp_path / "run"))
    write_validation(run, 0, make_examples()[:12])
    out = tmp_path / "learned.svg"
    main([str(run.path), "--out", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text().startswith("<?xml")


def test_a_run_without_validation_has_no_picture(tmp_path: Path) -> None:
    run = start(RunDirectory(tmp_path / "run"))
    with pytest.raises(ValueError, match="at least one validation"):
        draw_figure(run.path, tmp_path / "x.png")


def test_photographs_keep_their_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(RunDirectory(tmp_path / "run"))
    wide = encode(Image.new("RGB", (200, 100), (10, 20, 30)), "JPEG")
    examples = [type(e)(e.id, e.question, (wide,), e.answer, (), e.search_need, "fvqa") for e in make_examples()[:2]]
    write_validation(run, 0, examples)
    extents = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda *_, extent, **__: extents.append(extent))
    draw_figure(run.path, tmp_path / "x.png")
    left, right, bottom, top = extents[0]
    assert right - left == pytest.approx(2 * (bottom - top))
