"""A quick start for a command that scores one chat: a third of its imports serve what it never does.

Transformers imports, whatever model is used, the compiler for masks made inside it, distributed tensors for models in
shards, and SciPy for the losses of object detectors. Their own switches, or the place of the import, leave them out of
a process that is one of one. Nothing changes for those who import `ixc` themselves: only the command line calls this.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

COMPILER = "torch._dynamo"
MASKS = f"{COMPILER}._trace_wrapped_higher_order_op"
"""Where `transformers.masking_utils` takes a class from, and with it the whole compiler."""


class TransformGetItemToIndex:
    """The class of that name in torch, imported when one is made."""

    def __new__(cls) -> Any:
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex as Real

        return Real()


class _Compiler(ModuleType):
    """In place of the compiler while it is only asked to mark functions for itself: they stay as they are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _as_it_is


def _as_it_is(function: Any = None, *places: Any, **options: Any) -> Any:
    return function if function is not None else _as_it_is


@contextmanager
def quick_imports() -> Iterator[None]:
    """What is imported or loaded in this block leaves out what one process without a compiler does not need.

    Several processes (`torchrun`) need distributed tensors, perhaps; they and whoever has the compiler already get
    everything. Where another version of Transformers has no such switch, nothing is left out.
    """
    if "RANK" in os.environ or COMPILER in sys.modules:
        yield
        return
    import torch
    import torch.distributed
    from transformers import utils
    from transformers.utils.import_utils import is_torch_distributed_available

    with patch.object(torch.distributed, "is_available", lambda: False):
        is_torch_distributed_available()  # it remembers the answer
    masks = ModuleType(MASKS)
    setattr(masks, TransformGetItemToIndex.__name__, TransformGetItemToIndex)
    stand_ins = {COMPILER: _Compiler(COMPILER), MASKS: masks}
    scipy = patch.object(utils, "is_scipy_available", lambda: False, create=True)
    with scipy, patch.object(torch.compiler, "disable", _as_it_is):
        sys.modules.update(stand_ins)
        try:
            yield
        finally:  # the real ones are there to be imported
            for name, module in stand_ins.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]
            if vars(torch).get("_dynamo") is stand_ins[COMPILER]:
                del torch._dynamo
