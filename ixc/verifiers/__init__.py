"""Whether an answer is right, where a rule can tell."""
