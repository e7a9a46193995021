"""A run whose every text tries to become markup, script or template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from synthetic_run import make_episode, make_examples, reward_of

from mmsr1.run_directory import RunDirectory, episode_pictures, episode_record
from mmsr1.types import Exchange, ToolItem, ToolResult

OWNED = "document.title='owned'"
MARKUP = (
    f"</script><script>{OWNED}</script>",
    f'<img src=x onerror="{OWNED}">',
    f'"><b onmouseover="{OWNED}">bold</b>',
    "{{7*7}}{% raw %}",
    f'</style><iframe srcdoc="<script>top.{OWNED}</script>">',
    f"<!--<script>{OWNED}//",
)


def write_hostile_run(path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.start(MARKUP[0], 0, "\n".join(MARKUP), {MARKUP[1]: MARKUP[2]}, MARKUP[3])
    records, pictures = [], []
    for number, example in enumerate(make_examples()[: 2 * len(MARKUP)]):
        text = MARKUP[number % len(MARKUP)]
        example = replace(example, id=f"{text}{number}", question=text, answer=text)
        episode = make_episode(example, 1, True)
        item = ToolItem(text, f"page: {text}", f"javascript:{OWNED}")
        call = Exchange(0, episode.calls[0].call, ToolResult("ok", (item,), detail=text))
        episode = replace(episode, turns=(text, f"<reason>{text}</reason><answer>{text}</answer>"), calls=(call,))
        records.append(episode_record(example, episode, reward_of(episode, True)))
        pictures += episode_pictures(example, episode)
    for step in (0, 5):
        directory.write_episodes("val", step, records, pictures)
    directory.finish("failed", 1.0, MARKUP[0])
    return directory
