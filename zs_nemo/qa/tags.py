"""The control tags of an episode: the one place where they are spelt."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
SEARCH_OPEN, SEARCH_CLOSE = "<search>", "</search>"
INFORMATION_OPEN, INFORMATION_CLOSE = "<information>", "</information>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

TAG_NAMES = ("think", "search", "information", "answer")

STOP_STRINGS = (SEARCH_CLOSE, ANSWER_CLOSE)
"""A turn of the policy ends with the token that completes one of these."""
