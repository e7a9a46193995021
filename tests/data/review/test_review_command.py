"""The command: a page per reviewer, reviewed files, and mistakes in one line."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest

from acceptance._review import Server, plain, states
from mmsr1.data.formats import load_examples, write_examples
from mmsr1.data.review.__main__ import main
from mmsr1.data.review.decisions import Decision, DecisionLog, State, content_of


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_examples(tmp_path / "set.parquet", map(plain, range(6)))
    return tmp_path / "set.parquet"


def decisions(file: Path, name: str, **said: State) -> Path:
    """`row_0="accepted"`; an accepted row 2 is edited by ben."""
    path = Path(f"{file}.review.{name}.jsonl")
    log = DecisionLog(path)
    for key, state in said.items():
        example = plain(int(key.removeprefix("row_")))
        answer = "two" if key == "row_2" and name == "ben" else None
        log.decide(Decision(example.id, content_of(example), state, answer), 0)
    log.close()
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


def test_apply_writes_what_one_reviewer_accepted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ben = decisions(file, "ben", row_0="accepted", row_1="rejected", row_2="accepted", row_3="flagged")
    before = file.read_bytes()
    for name in ("out.parquet", "out.jsonl"):
        assert main(["apply", str(file), str(ben), "--out", name]) == 0
        rows, bad = load_examples(Path(name))
        assert [(row.id, row.answer) for row in rows] == [("row-0", "0"), ("row-2", "two")] and not bad
        assert rows[0] == plain(0)
    told = capsys.readouterr().out
    assert "2 accepted; 1 of the accepted edited; 1 rejected; 1 flagged, left out; 2 not decided, left out" in told
    assert "data.train_path=out.jsonl" in told.splitlines()[-1]
    assert file.read_bytes() == before


def test_merge_tells_agreement_and_hands_disputes_to_a_judge(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anna = decisions(file, "anna", row_0="accepted", row_1="rejected", row_2="accepted", row_3="accepted")
    ben = decisions(file, "ben", row_0="accepted", row_1="rejected", row_2="accepted", row_3="rejected")
    assert main(["merge", str(file), str(anna), str(ben), "--out", "out.parquet"]) == 0
    told = capsys.readouterr().out
    # 3 of 4 the same; by chance .75 x .5 + .25 x .5 = .5.
    assert "agreement of anna and ben: 0.750 (3 of 4 rows that both accepted or rejected), Cohen's kappa 0.500" in told
    assert [row.id for row in load_examples(Path("out.parquet"))[0]] == ["row-0"]
    disputes = [json.loads(line)["id"] for line in Path("out.parquet.disputes.jsonl").read_text().splitlines()]
    assert disputes == ["row-2", "row-3"] and "--between" in told
    judge = decisions(file, "judge", row_2="accepted", row_3="rejected")
    assert main(["merge", str(file), str(anna), str(ben), "--judge", str(judge), "--out", "out.parquet"]) == 0
    assert [row.answer for row in load_examples(Path("out.parquet"))[0]] == ["0", "2"]
    assert not Path("out.parquet.disputes.jsonl").exists()


def test_mistakes_are_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anna, other = decisions(file, "anna", row_0="accepted"), decisions(file, "ben", row_0="accepted")
    (file.parent / "empty.jsonl").touch()
    (file.parent / "broken.parquet").write_bytes(b"PAR1")
    assert "no such file" in refused(capsys, "none.parquet")
    assert "no such file" in refused(capsys, "merge", "none.parquet", anna, other, "--out", "o.parquet")
    assert "--reviewer=A/B" in refused(capsys, file, "--reviewer", "A/B")
    assert "--port=70000" in refused(capsys, file, "--port", "70000")
    assert "broken.parquet" in refused(capsys, "broken.parquet", "--port", "0")
    assert "--help" in refused(capsys, file, "--what")
    assert "--out" in refused(capsys, "apply", file, anna)
    assert ".parquet or .jsonl" in refused(capsys, "apply", file, anna, "--out", "out.csv")
    assert "stays as it is" in refused(capsys, "apply", file, anna, "--out", file)
    assert "decisions of a reviewer" in refused(capsys, "apply", file, "none.jsonl", "--out", "o.parquet")
    assert "no decisions in it" in refused(capsys, "apply", file, "empty.jsonl", "--out", "o.parquet")
    assert "no decisions in it" in refused(capsys, "apply", file, file, "--out", "o.parquet")
    assert "one reviewer" in refused(capsys, "merge", file, anna, anna, "--out", "o.parquet")
    assert "do not differ" in refused(capsys, file, "--port", "0", "--reviewer", "judge", "--between", anna, other)
    assert not list(file.parent.glob("o.*"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "cannot listen" in refused(capsys, file, "--port", str(port))


def test_bad_rows_of_the_file_and_bad_lines_are_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": "row-0", "question": "Which?", "answer": "0", "images": []},
        {"id": "row-1", "question": "", "answer": "x"},
    ]
    bad = file.with_name("bad.jsonl")
    write_examples(bad, [plain(0)])
    with bad.open("a") as out:
        out.write(json.dumps(rows[1]) + "\n")
    anna = decisions(bad, "anna", row_0="accepted")
    anna.write_text("no json\n" + anna.read_text())
    assert main(["apply", str(bad), str(anna), "--out", "out.parquet"]) == 0
    told = capsys.readouterr().err
    assert "1 rows of" in told and "row-1" in told and "line 1 is no decision" in told


def test_the_page_listens_on_loopback_alone_and_writes_the_accepted_rows_at_its_end(file: Path) -> None:
    out = file.with_name("reviewed.jsonl")
    with Server(file, "anna", 0, "--out", str(out)) as server:
        row = httpx.get(f"{server.url}/api/rows/1").json()
        body = {"state": "accepted", "content": row["content"], "seen": 0}
        assert httpx.post(f"{server.url}/api/rows/1", json=body, headers={"Origin": server.url}).status_code == 200
        assert states(server.decisions) == {"row-1": "accepted"}
        port = int(server.url.rpartition(":")[2])
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert {words[1] for words in listening if words[1].endswith(f":{port:04X}")} == {f"0100007F:{port:04X}"}
        with pytest.raises(RuntimeError, match="another review page"):
            Server(file, "anna")
    assert "review ended: 5 open, 1 accepted" in server.said and "out" in server.said
    assert [row.id for row in load_examples(out)[0]] == ["row-1"]
