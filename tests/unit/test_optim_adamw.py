"""AdamW as configured: what is decayed, and state that is there before the first step."""

import torch
from torch import nn
from trainingjob_trainer.config import Optimizer
from trainingjob_trainer.optim import build_optimizer, materialize


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.RMSNorm(2))
    optimizer = build_optimizer(model, Optimizer(lr=0.5, weight_decay=0.1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.5 * 0.1) if parameter.ndim == 2 else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def test_materialized_state_changes_nothing_in_what_follows() -> None:
    def run(early: bool) -> list[torch.Tensor]:
        model = nn.Linear(3, 2)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.3)
        optimizer = build_optimizer(model, Optimizer(lr=0.1))
        if early:
            materialize(optimizer)
        for step in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(model(torch.full((4, 3), step + 1.0)).square().sum())
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(early, late) for early, late in zip(run(True), run(False), strict=True))
