"""Who decides which answer is better: verifiers where a rule can tell, a model where only a judge can."""

from ixc.stages.judge.stage import run

__all__ = ["run"]
