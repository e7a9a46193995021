"""Telling a page from a wall in front of it: CAPTCHA, bot check, "access denied".

A wall comes with HTTP 200 as often as not. Long texts are pages, whatever they mention; of short ones a few sentences
give a wall away, which occur in articles about walls too: losing such an article costs one of many results.
"""

from __future__ import annotations

import re

WALL_CHARACTERS = 2_500

_TITLE = re.compile(
    r"^\W*(just a moment|attention required|access (to this page )?(has been )?denied|(error )?403\b|forbidden"
    r"|are you (a )?(robot|human)|(robot|bot|security|human) (check|verification)|security checkpoint"
    r"|verify(ing)? (that )?you are (a )?human|one more step|please wait|too many requests|429\b|captcha)",
    re.IGNORECASE,
)
_TEXT = re.compile(
    r"verify(ing)? (that )?you are (a )?human|(checking|verifying) (your browser|if the site connection is secure)"
    r"|(enable|turn on) javascript and cookies to continue|(complete|solve) (the|this|a) (security check|captcha)"
    r"|unusual traffic from your (computer )?network|press (&|and) hold to confirm|(i.m|you are|you.re) not a robot"
    r"|performing security verification|may(be| be) requiring captcha|request (was |has been )?blocked",
    re.IGNORECASE,
)


def is_wall(title: str, text: str) -> bool:
    """True if this is not the page but what stands before it.

    >>> is_wall("Just a moment...", "example.org needs to review the security of your connection")
    True
    """
    return len(text) <= WALL_CHARACTERS and bool(_TITLE.search(title) or _TEXT.search(text))
