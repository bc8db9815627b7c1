"""Who decides which answer is better: verifiers where a rule can tell, a model where only a judge can."""
