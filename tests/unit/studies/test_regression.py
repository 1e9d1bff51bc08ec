"""The best step of gradient descent, worked out by hand."""

import torch

from regard.studies.in_context_regression import debiased_step


def test_a_step_takes_means_off_and_has_the_best_rate():
    x = torch.tensor([[[1.0], [-1.0]], [[1.0], [3.0]]])
    y, query = torch.tensor([[2.0, -2.0], [5.0, 1.0]]), torch.tensor([[1.0], [2.0]])
    found = debiased_step(x, y, query, torch.tensor([1.0, -1.0]))  # 4 and -8 before the rate of 12 / 80
    assert torch.allclose(found, torch.tensor([0.6, -1.2]))
    assert torch.allclose(debiased_step(x + 7, y - 3, query, torch.tensor([1.0, -1.0])), found)
