"""QA sets of other people: where they are published, the forms of their rows, and what is wrong with a row."""
