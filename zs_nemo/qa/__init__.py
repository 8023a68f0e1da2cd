"""Questions, prompts, action parsing and answer rewards."""
