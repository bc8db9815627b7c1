"""What pairs must fulfil: facts about them, expectations of the kept ones, a summary of it all."""

from ixc.stages.validate.stage import run

__all__ = ["run"]
