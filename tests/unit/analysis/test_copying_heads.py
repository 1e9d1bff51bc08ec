"""Heads that copy by construction have positive eigenvalues, heads that suppress negative ones."""

import pytest
import torch

from regard.analysis.copying_heads import copying_eigenvalues, copying_scores, parts
from regard.analysis.planted import planted_model
from regard.networks.lm import LM, Config
from regard.networks.untied import UntiedLM


def model_of(*signs):
    """A layer whose heads read two channels each and write them back, times a sign; embeddings are orthogonal."""
    model = LM(Config(8, 8, "softmax", heads=4, inner=0), seed=0).double()
    projection = model.blocks[0].attention.projection
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(8) * 3)
        projection.v.weight.copy_(torch.eye(8))
        projection.out.weight.zero_()
        for head, block in enumerate(signs):
            part = slice(2 * head, 2 * head + 2)
            projection.out.weight[part, part] = torch.tensor(block, dtype=torch.float64)
    return model


def test_a_matrix_of_its_own_reads_what_heads_write():
    """Rows that are the embeddings times −1: what copies with tied ones suppresses, and the logits are the others'."""
    tied = model_of([[1.0, 0], [0, 1]], [[-2.0, 0], [0, -2]], [[0.0, 0], [0, 0]], MIXED)
    own = UntiedLM(tied.config, seed=0).double()
    own.load_state_dict(tied.state_dict() | {"output": -tied.embedding.weight})
    torch.testing.assert_close(copying_eigenvalues(own)[0], -copying_eigenvalues(tied)[0])
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(own(ids), -tied(ids))


TURN = [[0.0, -1.0], [1.0, 0.0]]
MIXED = [[3.0, 0.0], [0.0, -1.0]]


def test_eigenvalues_of_planted_heads():
    """Copies 1, suppresses −1, turns by a right angle 0, and of eigenvalues 3 and −1 two quarters."""
    found = copying_eigenvalues(model_of([[1.0, 0], [0, 1]], [[-2.0, 0], [0, -2]], TURN, MIXED))
    torch.testing.assert_close(found[0], torch.tensor([1, -1, 0, 0.5], dtype=torch.float64))


def test_scores_of_planted_heads():
    """Tokens 0 and 2, which the first head raises and the second lowers; of token 5 both know nothing."""
    model = model_of([[1.0, 0], [0, 1]], [[-2.0, 0], [0, -2]], TURN, MIXED)
    scores = copying_scores(model, torch.tensor([0, 2, 5]))
    assert scores.of((0, 0)) == pytest.approx(1 / 3)
    assert scores.of((0, 1)) == 0
    assert scores.of((0, 3)) == 0
    assert copying_scores(model, torch.tensor([0, 6])).of((0, 3)) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["lm", "untied", "transformers"])
def test_they_are_those_of_the_whole_matrix(kind):
    made = {"lm": LM, "untied": UntiedLM}.get(kind)
    config = Config(13, 12, "softmax*2", heads=3, kv_heads=1)
    model = planted_model() if made is None else made(config, seed=1).double()
    layers, embeddings, rows = parts(model)
    found = copying_eigenvalues(model)
    ids = torch.tensor([1, 4, 9])
    scores = copying_scores(model, ids)
    with torch.no_grad():
        for layer, of in enumerate(layers):
            for head in range(3):
                ov = of.o[head] @ of.shared(of.v)[head]
                whole = (rows @ ov @ of.norm(embeddings).T).double()
                values = torch.linalg.eigvals(whole)
                want = float(values.sum().real / values.abs().sum().clamp(min=1e-300))
                assert found[layer][head] == pytest.approx(want, abs=1e-6)
                raised = (whole[ids][:, ids] - whole[:, ids].mean(0)).clamp(min=0)
                share = raised.diagonal() / raised.sum(0).clamp(min=1e-300)
                assert scores.of((layer, head)) == pytest.approx(float(share.mean()), abs=1e-6)


def test_what_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"^ids: got \[3, 3\], want at least two different tokens"):
        copying_scores(planted_model(), torch.tensor([3, 3]))
    with pytest.raises(ValueError, match=r"^model: got a projection"):
        parts(LM(Config(13, 12, "softmax with nexus(order=2)", heads=3), seed=1))
