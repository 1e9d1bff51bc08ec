"""A queue of gated vectors beside attention in chunks, written out chunk by chunk."""

import pytest
import torch

from regard.core.layout import Layout
from regard.networks.fifo import FifoLM, QueueAttention
from regard.networks.lm import Config

CONFIG = Config(29, 12, "softmax", heads=2, kv_heads=1)
N, CHUNK, COUNT = 17, 5, 2


def test_a_layer_by_its_equations():
    torch.manual_seed(0)
    made, x = QueueAttention(CONFIG, CHUNK, COUNT, True).double(), torch.randn(1, N, 12, dtype=torch.float64)
    p, queue, rows = made.projection, list(made.first), []
    q, k, v = (z[0] for z in made.heads(x, torch.arange(N)[None]))
    plain = (x[0] @ p.q.weight.T).view(N, 2, 6)

    def attended(query, keys, values):
        return (query @ keys.mT / 6**0.5).softmax(-1) @ values

    for i in range(N):
        if i and i % CHUNK == 0:
            mean, old = x[0, i - CHUNK : i].mean(0), queue[-1]
            gate = torch.sigmoid(made.write.weight @ torch.cat([mean, old]) + made.write.bias)
            queue = [*queue[1:], gate * mean + (1 - gate) * old]
        held, outs = torch.stack(queue), []
        assert len(queue) == COUNT
        for head in range(2):
            own = slice(i // CHUNK * CHUNK, i + 1)
            out = attended(q[head, i], k[0, own], v[0, own]) + attended(q[head, i], k[0, : i + 1], v[0, : i + 1])
            outs.append(out + attended(plain[i, head], held @ p.k.weight.T, held @ p.v.weight.T))
        rows.append(torch.cat(outs) @ p.out.weight.T)
    torch.testing.assert_close(made(x, Layout(causal=True))[0], torch.stack(rows))


def test_the_state_holds_the_queue_and_no_more():
    model = FifoLM(Config(29, 12, "softmax*2", heads=2), CHUNK, COUNT, False, seed=0)
    sizes = set()
    for n in (10, 60):
        state = model.extend(torch.zeros(1, n, dtype=torch.int64), model.start(1))[1]
        assert state.layers[0].memory.shape == (1, COUNT, 12)
        sizes.add(state.bytes)
    assert len(sizes) == 1


def test_refusals():
    for given, said in (({"chunk": 0}, "chunk: got 0"), ({"memory": -1}, "memory: got -1")):
        with pytest.raises(ValueError, match=said):
            FifoLM(CONFIG, **given)
    with pytest.raises(ValueError, match="segments: got packed documents"):
        FifoLM(CONFIG)(torch.zeros(1, 3, dtype=torch.int64), segments=torch.tensor([[0, 1, 1]]))
