"""Configuration to objects, each made from plain arguments. Entry points import these; components never see a config.

Nothing is imported here: who serves search tools needs no model. `training` has all that a run needs.
"""
