"""Review of examples by people: a local page, decisions that are never lost, and the merge of two reviewers."""
