"""One score from the command line does not wait for what it never uses, and is the same score."""

import json
import sys
from pathlib import Path

import pytest
from conftest import Call
from PIL import Image
from tiny import processor, reward

from ixc.api import RewardModel

SCORE = """
import sys
from ixc.cli import main
code = main(sys.argv[1:])
print(sorted(name for name in ("scipy.optimize", "torch._dynamo", "sklearn") if name in sys.modules))
import torch
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
sys.exit(code)
"""


@pytest.mark.slow
def test_one_score_leaves_the_compiler_and_scipy_alone_and_torch_as_it_was(tmp_path: Path, call: Call):
    model, picture = tmp_path / "model", tmp_path / "red.png"
    reward().save_pretrained(model)
    processor().save_pretrained(model)
    Image.new("RGB", (56, 56), "red").save(picture)
    asked = ("--question", "What?", "--answer", "good", "--media", str(picture), "--json")
    ran = call(tmp_path, "-c", SCORE, "score", str(model), *asked, PYTHONPATH=str(Path(__file__).parents[1]))
    assert ran.returncode == 0, ran.stderr
    *scored, heavy, compiled = ran.stdout.splitlines()
    assert heavy == "[]" and compiled == "2.0", "the compiler is there for who asks"

    chats = [[{"role": "user", "content": "What?"}, {"role": "assistant", "content": "good"}]]
    [alone] = RewardModel.from_pretrained(model, device="cpu").score(chats, [[str(picture)]])
    assert f"{alone:.6f}"[:6] in "".join(scored), json.dumps(scored)
    assert sys.modules.get("torch._dynamo") is None or hasattr(sys.modules["torch._dynamo"], "optimize")
