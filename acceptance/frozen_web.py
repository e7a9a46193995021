"""Issue E: the frozen web; bundles, a shared gateway, indexes at research scale."""

from __future__ import annotations

from acceptance._bundle import fvqa_pickles, large_bundle, replay_identical, sweep
from acceptance._gateway import gateway
from acceptance._indexes import image_index, text_index
from acceptance.lines import Line

LINES = (
    Line("replay", replay_identical),
    Line("sweep", sweep),
    Line("fvqa_pickles", fvqa_pickles),
    Line("text_index", text_index),
    Line("image_index", image_index),
    Line("gateway", gateway),
    Line("large_bundle", large_bundle),
)
