"""Issue H: the paper's ablations as one command each, ending in a figure."""

from __future__ import annotations

from acceptance._launchers import launchers
from acceptance._studies import data_balance, gap, grpo_variants, reward, search_penalty, sft_vs_rl, target_calls
from acceptance.lines import Line

LINES = (
    Line("search_penalty", search_penalty),
    Line("data_balance", data_balance),
    Line("sft_vs_rl", sft_vs_rl),
    Line("reward", reward),
    Line("grpo_variants", grpo_variants),
    Line("target_calls", target_calls),
    Line("gap", gap),
    Line("launchers", launchers),
)
