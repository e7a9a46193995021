"""Acceptance lines of each issue as one command: `make accept NAME=learning`.

A line runs the product from outside, as its user would, and reports figure, threshold and whether it holds.
"""
