"""Half precision is not refused where the processor only emulates it, but not silent either."""

import warnings
from pathlib import Path

import pytest
import tiny

from ixc.models import precision
from ixc.models.ixc25 import IXCForCausalLM
from ixc.models.ixc25.folder import load, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model stored in bfloat16."""
    save(tiny.causal().bfloat16(), tiny.processor(), tmp_path / "model")  # pyright: ignore[reportArgumentType]
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_emulated_half_precision_names_the_remedy(
    folder: Path, dtype: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "computes_fast_in_half", lambda: False)
    with pytest.warns(UserWarning, match=r"bfloat16 is emulated.*--dtype float32"):
        load(folder, IXCForCausalLM, dtype=dtype)
    with pytest.warns(UserWarning, match="bfloat16 is emulated"):
        tiny.causal().compute_in_bf16()


@pytest.mark.parametrize(("dtype", "fast"), [("bfloat16", True), ("float32", False)])
def test_what_the_processor_is_fast_at_warns_nobody(
    folder: Path, dtype: str, fast: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "computes_fast_in_half", lambda: fast)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder, IXCForCausalLM, dtype=dtype)
