"""The card counts what is in the file, and text of data sets and pages stays text in it."""

from pathlib import Path

from PIL import Image

from mmsr1.data.card import write_card
from mmsr1.tools.pictures import encode_png
from mmsr1.types import Evidence, Example, Notes, Picture, SearchNeed

PLAIN = Notes()


def example(number: int, need: SearchNeed = "free", notes: Notes = PLAIN, source: str = "mine") -> Example:
    image = encode_png(Image.new("RGB", (40, 30 + number)))
    return Example(str(number), "q", (image,), "a", ("b", "c"), need, source, notes)


def table(card: str, heading: str) -> list[str]:
    """The rows of the table under a heading."""
    lines = card.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [line for line in lines if line.startswith("| ")][1:] if "| |" not in lines else lines


def test_it_counts_what_passes_by(tmp_path: Path) -> None:
    noted = Notes("Place", 0.25, "CC0", (Evidence("t"),))
    rows = [
        example(0),
        example(1, "both", noted),
        example(2, "both", noted, "other"),
        example(3, notes=Notes(difficulty=1)),
    ]
    path = write_card(tmp_path, iter(rows), "My set")
    card = path.read_text(encoding="utf-8")
    assert path == tmp_path / "DATASET_CARD.md" and card.startswith("# My set\n")
    assert "4 questions with 4 pictures" in card and "edges of 30 to 40 pixels" in card
    assert "8 accepted answers beside the first; evidence is kept for 2 questions" in card
    assert "3 were tried by a policy, which failed at 50.0 % of its attempts" in card
    assert table(card, "Search need") == ["| free | 2 |", "| both | 2 |"]
    assert table(card, "Taxonomy") == ["| (none) | 2 |", "| Place | 2 |"]
    assert table(card, "Source") == ["| mine | 3 |", "| other | 1 |"]
    assert table(card, "Licence") == ["| (not stated) | 2 |", "| CC0 | 2 |"]
    assert table(card, "Picture format") == ["| PNG | 4 |"]


def test_what_the_examples_do_not_say_is_given(tmp_path: Path) -> None:
    facts = {"Leakage": {"same picture": 0, "near question": 3}, "Cost": "3.20 USD", "How": ["concepts", "questions"]}
    card = write_card(tmp_path / "set.parquet", [example(0)], "x", facts).read_text()
    assert (tmp_path / "DATASET_CARD.md").is_file()
    assert "| same picture | 0 |\n| near question | 3 |" in card
    assert "## Cost\n\n3.20 USD\n" in card and "- concepts\n- questions\n" in card


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    notes = Notes("a|b\n\n# heading", None, "<img src=x onerror=alert(1)>")
    card = write_card(tmp_path, [example(0, notes=notes, source="[x](http://y)")], "<b>", {"*": "`rm`"}).read_text()
    assert "| a\\|b \\# heading | 1 |" in card and "| &lt;img src=x onerror=alert(1)&gt; | 1 |" in card
    assert "\\[x\\](http://y)" in card and "# &lt;b&gt;\n" in card and "## \\*\n\n\\`rm\\`" in card


def test_many_kinds_are_added_up_after_the_first_fifty(tmp_path: Path) -> None:
    rows = (example(0, source=f"source {n}") for n in range(60) for _ in range(2 if n < 50 else 1))
    assert table(write_card(tmp_path, rows, "x").read_text(), "Source")[-1] == "| (10 more) | 10 |"


def test_a_picture_that_cannot_be_read_is_counted_too(tmp_path: Path) -> None:
    row = Example("1", "q", (Picture(b"none"),), "a", (), "free", "s")
    assert table(write_card(tmp_path, [row], "x").read_text(), "Picture format") == ["| (not readable) | 1 |"]


def test_an_empty_set_has_a_card_too(tmp_path: Path) -> None:
    assert "0 questions with 0 pictures (0.0 MB)" in write_card(tmp_path, [], "x").read_text()
