"""From raw prompts to a better-aligned chat model, by way of a multi-modal reward model."""
