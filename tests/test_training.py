"""The optimizer: what Muon trains, and that a stopped run with it goes on as if it had not been."""

from copy import deepcopy

import pytest
import tiny
import torch

from ixc.model import IXCForCausalLM
from ixc.training import MuonOptimizer, Optimizer, matrices


def test_muon_trains_the_matrices_of_layers_and_projector_that_are_trained_at_all():
    model = tiny.causal()
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = [names[id(p)] for p in matrices(model)]
    assert {name.split(".")[-2] for name in chosen} >= {"wqkv", "wo", "w1", "w2", "w3", "q_proj", "fc1", "0"}
    assert not any("Plora_" in name or "embeddings" in name or name.startswith("output") for name in chosen)
    model.freeze_vision()
    assert all(names[id(p)].startswith("model.layers.") for p in matrices(model))


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
        return model, MuonOptimizer(model, 1e-2, 8) if muon else Optimizer(model.parameters(), 1e-2, 8)

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
