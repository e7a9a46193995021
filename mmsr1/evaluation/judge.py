"""An LLM judge: is an answer right, wrong, or none at all?

The three grades are those of SimpleQA (Wei et al., 2024, arXiv 2411.04368, section 2); wording and reply format are
our own. The answer under test is hostile: it wants to be graded CORRECT and may contain whatever helps. So it is cut,
neutralised and quoted between marks that it cannot know, and of the judge's reply only two forms are read: one JSON
object with the verdict alone, or one line with one verdict word alone. All else is `unparsed`, never a guess: a lenient
reader would find the verdict that the judge only repeats from the answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

from mmsr1.data.construct.asking import quoted
from mmsr1.data.construct.prompts import STRANGERS
from mmsr1.tools.base import Part
from mmsr1.tools.chat import ChatMessage, ChatQuery, ChatReply, asked_of_chat
from mmsr1.tools.sanitize import neutralise, one_line
from mmsr1.types import Example, Picture

Grade = Literal["correct", "incorrect", "not_attempted"]
Status = Literal["correct", "incorrect", "not_attempted", "unparsed", "outage"]
GRADES: tuple[Grade, ...] = get_args(Grade)

PROMPT = files("mmsr1.evaluation").joinpath("judge_prompt.txt").read_text(encoding="utf-8")
REPLY = """\
Reply with one JSON object and nothing else: {"verdict": "CORRECT"}, {"verdict": "INCORRECT"} or \
{"verdict": "NOT_ATTEMPTED"}."""
ASK = "Grade the answer. Reply with the JSON object alone."
AGAIN = "Your reply must be that object, with no word before or after it and no other key in it."
ANSWER_CHARACTERS = 1_000  # of the answer under test; benchmarks ask for a few words
RULES = 1  # version of what decides a verdict beside the requests: how replies are read, which answers are not sent
_SHOWN = 80  # characters of a reply that a detail repeats

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_MARKUP = "*_`\"'. \t"
_WORDS: Mapping[str, Grade] = {grade.replace("_", " "): grade for grade in GRADES}


@dataclass(frozen=True)
class Verdict:
    """What the judge made of one answer.

    unparsed   it replied, but with nothing that is one verdict and no more: a refusal, a contradiction, half a reply
    outage     it could not be asked: the service failed, did not take the request, or the budget is spent

    `detail` is one line for people. `cost_usd` is what it would cost with an empty cache, `paid_usd` what it did.
    """

    status: Status
    detail: str = ""
    cost_usd: float = 0.0
    paid_usd: float = 0.0

    @property
    def score(self) -> float | None:
        """1 for a correct answer, 0 for one that is not; None where nobody knows, which is no 0."""
        return float(self.status == "correct") if self.status in GRADES else None


class Judge:
    """Grades answers at temperature 0 by the `model` behind `chat`.

    `prompt` says what counts as right; how strangers' texts are marked and how to reply is added to it. `with_image`
    shows the pictures too. A reply that cannot be read is asked for again, up to `tries` requests in all, each under
    another seed and with a sentence more, so that a service that repeats itself may reply anew too. Not sent are an
    answer without a visible character (not attempted) and one that is the truth or an alias letter for letter, but for
    white space (correct): there is nothing to judge, and nothing to pay.
    Raises ValueError for a prompt or a model without a name, or less than one try.
    """

    def __init__(
        self,
        chat: Part[ChatQuery, ChatReply],
        model: str,
        prompt: str = PROMPT,
        with_image: bool = False,
        tries: int = 2,
        reply_tokens: int = 512,
    ) -> None:
        for name, value in (("model", model), ("prompt", prompt)):
            if not value.strip():
                raise ValueError(f"judge {name}={value!r}: is empty; every verdict depends on it")
        for name, number in (("tries", tries), ("reply_tokens", reply_tokens)):
            if number < 1:
                raise ValueError(f"judge {name}={number}: must be 1 or more")
        self.model, self.with_image, self.tries = model, with_image, tries
        self._chat, self._reply_tokens = chat, reply_tokens
        self._system = "\n".join((prompt.strip(), STRANGERS, REPLY))
        self.prompt_hash = self._hash()

    @property
    def described(self) -> dict[str, Any]:
        """What a result must name so that another can be compared with it; holds no secret."""
        return {
            "model": self.model,
            "prompt_hash": self.prompt_hash,
            "with_image": self.with_image,
            "tries": self.tries,
            "backend": self._chat.backend,
        }

    async def verdict(self, example: Example, said: str | None) -> Verdict:
        """Of the answer `said` to an example, None if there was none. Raises nothing but `asyncio.CancelledError`."""
        if said is None or not _visible(said):
            return Verdict("not_attempted", "no answer")
        if _words(said) in [_words(truth) for truth in (example.answer, *example.aliases)]:
            return Verdict("correct", "repeats the truth")
        cost_usd = paid_usd = 0.0
        detail = ""
        for seed in range(self.tries):
            outcome = await self._chat(self.query(example, said, seed))
            cost_usd, paid_usd = cost_usd + outcome.cost_usd, paid_usd + outcome.paid_usd
            if outcome.status not in ("ok", "empty"):
                return Verdict("outage", f"{outcome.status}: {outcome.detail}", cost_usd, paid_usd)
            grade, detail = _graded(outcome.value)
            if grade is not None:
                return Verdict(grade, detail, cost_usd, paid_usd)
        return Verdict("unparsed", detail, cost_usd, paid_usd)

    def query(self, example: Example, said: str, seed: int = 0) -> ChatQuery:
        """The request; a seed above 0 is that of another try."""
        truths = dict.fromkeys(one_line(truth) for truth in (example.answer, *example.aliases))
        cut = f"It is longer; these are its first {ANSWER_CHARACTERS} characters.\n"
        texts = (
            quoted("question", example.question),
            quoted("right answer and other ways to write it, one a line", "\n".join(truths)),
            quoted("answer to be graded", said[:ANSWER_CHARACTERS]),  # cut first: a cut makes a new end
            cut if len(said) > ANSWER_CHARACTERS else "",
            f"{ASK} {AGAIN}" if seed else ASK,
        )
        pictures: tuple[str | Picture, ...] = example.images if self.with_image else ()
        messages = (ChatMessage("system", (self._system,)), ChatMessage("user", (*pictures, "".join(texts))))
        return ChatQuery(messages, self._reply_tokens, temperature=0.0, seed=seed)

    def _hash(self) -> str:
        """sha256 over all that decides a verdict besides model, question and answer: the requests as they would be made
        for a stand-in whose answer is too long, so that a change of any of their words shows."""
        example = Example("id", "question", (Picture(b"picture"),), "truth", ("alias",), "unknown", "source")
        long = "a" * (ANSWER_CHARACTERS + 1)
        asked = [asked_of_chat(self.query(example, said, seed)) for said in ("b", long) for seed in range(self.tries)]
        return hashlib.sha256(json.dumps([RULES, asked], sort_keys=True).encode()).hexdigest()


def judged(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Figures over answers of which each has its verdict; none of none.

    `judge_accuracy` is over those with a grade: neither an outage nor a reply that nobody can read is a wrong answer.
    It is missing if there is none, and while the judge could not be asked about some: answers that repeat the truth
    need no judge, so what is graded in an outage is no fair part of all. The rates are over all, that of answers not
    attempted over those with a grade.
    """
    if not verdicts:
        return {}
    found = [verdict.status for verdict in verdicts]
    graded = [status for status in found if status in GRADES]
    rates = {f"judge_{name}_rate": found.count(name) / len(found) for name in ("unparsed", "outage")}
    if not graded:
        return rates
    shares = {"judge_accuracy": "correct", "judge_not_attempted_rate": "not_attempted"}
    told = {} if rates["judge_outage_rate"] else {name: graded.count(g) / len(graded) for name, g in shares.items()}  # type: ignore[arg-type]
    return told | rates


def read_verdict(said: str) -> Grade | None:
    """The one verdict that a reply is; None for one that is anything more or less.

    >>> read_verdict('{"verdict": "INCORRECT"}'), read_verdict("**Not attempted.**"), read_verdict("Not CORRECT.")
    ('incorrect', 'not_attempted', None)
    """
    text = said.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        word = found.get("verdict") if len(found) == 1 else None
    else:
        word = text.strip(_MARKUP)
        label, colon, rest = word.partition(":")
        word = rest.strip(_MARKUP) if colon and label.strip(_MARKUP).casefold() == "verdict" else word
    return _WORDS.get(word.casefold().replace("_", " ").replace("-", " ")) if isinstance(word, str) else None


def _graded(reply: ChatReply | None) -> tuple[Grade | None, str]:
    """(the verdict of a reply, or None; in one line what it said)."""
    if reply is None or not reply.text:
        return None, "an empty reply"
    if reply.finish == "length":  # what would have followed may have taken it back
        return None, "the reply was cut at its token limit"
    grade = read_verdict(reply.text)
    return grade, "" if grade else f"no single verdict: {one_line(neutralise(reply.text[:_SHOWN]))!r}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that stands in an object twice, of which `json` would keep the last."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def _visible(text: str) -> bool:
    """Whether there is anything but white space, control and format characters."""
    return any(character.isprintable() and not character.isspace() for character in text)


def _words(text: str) -> list[str]:
    """For the comparison letter by letter. Case and punctuation stay, unlike in exact match: -5 is not 5, mW not MW."""
    return text.split()
