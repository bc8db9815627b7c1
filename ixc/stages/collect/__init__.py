"""The sources become prompts, pairs and a corpus; what is no good is quarantined with its reason."""

from ixc.stages.collect.stage import run

__all__ = ["run"]
