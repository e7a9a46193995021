"""mmsr1: reinforcement learning that teaches a vision-language model to search only when it must.

One sentence: examples become episodes, episodes become rewards, groups of them become one packed batch,
the loss moves the weights, and the weights go back to the engine. See `mmsr1.types` for the stages.
"""

__version__ = "0.1.0"
