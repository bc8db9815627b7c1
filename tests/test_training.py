"""The optimizer: what Muon trains, and that a stopped run with it goes on as if it had not been."""

from copy import deepcopy
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ixc.engine.optim import Muon, MuonOptimizer, Optimizer, orthogonalized
from ixc.models.ixc25 import IXCForCausalLM


def test_muon_trains_the_matrices_of_layers_and_projector_that_are_trained_at_all():
    model = tiny.causal()
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = [names[id(p)] for p in model.muon_matrices()]
    assert {name.split(".")[-2] for name in chosen} >= {
        "wqkv",
        "wo",
        "w1",
        "w2",
        "w3",
        "q_proj",
        "fc1",
        "0",
    }
    assert not any(
        "Plora_" in name or "embeddings" in name or name.startswith("output") for name in chosen
    )
    model.freeze_vision()
    assert all(names[id(p)].startswith("model.layers.") for p in model.muon_matrices())


def step(model: IXCForCausalLM, optimizer: Optimizer, number: int) -> float:
    torch.manual_seed(number)
    ids = torch.randint(10, 40, (2, 12))
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.step(loss)
    return loss.item()


@pytest.mark.parametrize("muon", [False, True])
def test_a_stopped_optimizer_goes_on_as_if_it_had_not_been(muon: bool):
    def start() -> tuple[IXCForCausalLM, Optimizer]:
        model = tiny.causal()
        return model, MuonOptimizer(model, 1e-2, 8) if muon else Optimizer(
            model.parameters(), 1e-2, 8
        )

    model, optimizer = start()
    losses = [step(model, optimizer, number) for number in range(4)]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = deepcopy(optimizer.state_dict())
    wanted = [step(model, optimizer, number) for number in range(4, 8)]
    model, optimizer = start()
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert [step(model, optimizer, number) for number in range(4, 8)] == wanted
    assert losses[0] != wanted[-1]


class Precisions(TorchDispatchMode):
    """Notes the type of every tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


def test_on_a_cpu_training_in_fp32_computes_nothing_in_half_precision():
    model = tiny.causal()
    with Precisions() as precisions:
        step(model, MuonOptimizer(model, 1e-2, 8), 0)
    assert torch.float32 in precisions.seen
    assert not precisions.seen & {torch.bfloat16, torch.float16}


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_makes_singular_values_of_about_one(shape: tuple[int, int]):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape) * 1000))
    assert 0.5 < values.min().item() < values.max().item() < 1.5


def test_muon_is_that_of_torch_but_for_the_precision():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(12, 32)) for _ in range(2))
    library = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon([ours], lr=0.1, weight_decay=0.2)
    for _ in range(4):
        ours.grad = torch.randn(12, 32)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        library.step()
    torch.testing.assert_close(
        ours, theirs, atol=4 * 0.1 * 0.2 * 32**0.5 * 2**-7, rtol=0
    )  # bfloat16: 8 bits
