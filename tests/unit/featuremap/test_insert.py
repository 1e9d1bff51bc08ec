"""Gates put into models that were built without them, and taken out again."""

import pytest
import torch
from torch import nn

import regard
from regard.featuremap.insert import Inserted


class Block(nn.Module):
    """Two convolutions and what goes round them."""

    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(width, out, 1, stride)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def net():
    torch.manual_seed(0)
    sizes = ((3, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1))
    return nn.Sequential(*(Block(*size) for size in sizes), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


X = torch.randn(2, 3, 11, 7, generator=torch.Generator().manual_seed(1))


def test_begun_as_the_identity_the_model_gives_what_it_gave():
    model = net()
    before, names = model(X), set(model.state_dict())
    with regard.insert(model, "cbam(ratio=4) | eca", "*.bn2", start="identity") as inserted:
        assert torch.equal(model(X), before)
        assert set(inserted.gates) == {f"{block}.bn2" for block in range(4)}
        loss = model(X).square().sum()
        assert all(p.grad is None for p in model.parameters())
        loss.backward()
        alphas = [p for name, p in model.named_parameters() if name.endswith("alpha")]
        assert len(alphas) == 4
        assert all(alpha.grad.abs() > 0 for alpha in alphas)
    assert torch.equal(model(X), before)
    assert set(model.state_dict()) == names


def test_gates_change_what_they_weigh_and_keep_what_they_saw():
    model = net()
    before = model(X)
    inserted = regard.insert(model, "triplet(kernel=3)", ["0.bn2", "2.bn*"], keep=True)
    assert not torch.equal(model(X), before)
    assert {name: factors["yx"].shape for name, factors in inserted.factors.items()} == {
        "0.bn2": (2, 1, 11, 7),
        "2.bn1": (2, 1, 6, 4),
        "2.bn2": (2, 1, 6, 4),
    }
    assert len(inserted.parameters()) == 3 * 9
    inserted.remove()
    assert torch.equal(model(X), before)


def test_weights_of_the_model_without_gates_load_strictly_and_those_with_them_too():
    model, plain = net(), net().state_dict()
    with regard.insert(model, "se(ratio=4)", "*.bn2", start="identity"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        moved = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(plain)
        now = model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in plain.items())
        assert all(torch.equal(now[name], value) for name, value in moved.items() if ".gate." in name)
        model.load_state_dict(moved)
        with pytest.raises(RuntimeError, match=r"bn2.gate.alpha"):
            model.load_state_dict({name: value for name, value in moved.items() if not name.endswith("alpha")})


def test_a_gate_that_reads_earlier_stages_is_given_them():
    model = net()
    with regard.insert(model, "pkcam", "*.bn2") as inserted:
        assert [gate.past for gate in inserted.gates.values()] == [(), (), (), (8,)]
        model(X)
        with torch.no_grad():
            seen = model[:2](X), model[:3](X)
            last = model[3]
            branch = nn.BatchNorm2d.forward(last.bn2, last.conv2(torch.relu(last.bn1(last.conv1(seen[1])))))
            block = model[1]
            earlier = nn.BatchNorm2d.forward(
                block.bn2, block.conv2(torch.relu(block.bn1(block.conv1(model[:1](X)))))
            ).mean((2, 3))
            want = torch.relu(inserted.gates["3.bn2"](branch, [earlier]) + last.skip(seen[1])).mean((2, 3))
            torch.testing.assert_close(model(X), want)


@pytest.mark.parametrize(
    ("where", "more", "message"),
    [
        ("*.bn9", {}, r"where: got '\*.bn9', want a pattern of names in model.named_modules\(\)"),
        ("0", {}, "where: got '0', a Block, want a norm or a convolution, or channels=…"),
        ("*.bn2", {"start": "zero"}, "start: got 'zero', want 'identity' or None"),
    ],
)
def test_what_cannot_be_is_named(where, more, message):
    model = net()
    with pytest.raises(ValueError, match=message):
        regard.insert(model, "eca", where, **more)
    assert not any("gate" in name for name, _ in model.named_modules())


def test_who_interrupts_half_way_finds_nothing_left(monkeypatch):
    model, add = net(), Inserted.add

    def once(self, *about):
        if self.factors or any("gate" in name for name, _ in model.named_modules()):
            raise KeyboardInterrupt
        add(self, *about)

    monkeypatch.setattr(Inserted, "add", once)
    with pytest.raises(KeyboardInterrupt):
        regard.insert(model, "eca", "*.bn2")
    assert not any("gate" in name for name, _ in model.named_modules())


def test_what_fails_half_way_leaves_nothing():
    model = net()
    with pytest.raises(ValueError, match="frequencies: got 16, want at most 32, a divisor of the 8 channels"):
        regard.insert(model, "fcanet", ["2.bn2", "0.bn2"])
    assert not any("gate" in name for name, _ in model.named_modules())
    with regard.insert(model, "eca", "0.bn2"), pytest.raises(ValueError, match=r"'0\.bn2', which has a gate"):
        regard.insert(model, "eca", "*.bn2")
    with (
        regard.insert(model, "eca", "5", channels=16),
        pytest.raises(ValueError, match=r"where: got '5', which gives \(2, 16\), want modules that give a map"),
    ):
        model(X)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("softmax", TypeError, "gate: got 'softmax', a mechanism, want one of regard.entries"),
        ("tripled", LookupError, "did you mean 'triplet'"),
        ("triplet(size=3)", TypeError, "size: got an unknown argument, want one of triplet's: channels, kernel"),
        ("composed_gate(pool=middle)", ValueError, "pool: got 'middle', want one of none, mean, max"),
        ("composed_gate(over=c)", ValueError, "over: got 'c', want 'yx' for this mix"),
        ("composed_gate(over='y z')", ValueError, "over: got 'y z', want axes such as"),
        ("composed_gate(squash=round)", ValueError, "squash: got 'round', want one of sigmoid"),
        ("composed_gate(rule=sum)", ValueError, "rule: got 'sum', want one of product, mean, residual"),
        ("triplet(kernel=4)", ValueError, "kernel: got 4, want an odd number"),
        ("ulsam(subspaces=5)", ValueError, "subspaces: got 5, want a divisor of the 64 channels"),
        ("ela(size=M)", ValueError, "size: got 'M', want one of T, B, S, L"),
        ("pkcam(earlier=(48,))", ValueError, r"earlier: got \(48,\), want divisors of the 64 channels"),
        ("se | pkcam(earlier=(4,))", ValueError, "gates: got one that reads earlier stages"),
        ("se(ratio=0)", ValueError, "ratio, divisor: got 0, 1, want above zero"),
    ],
)
def test_texts_that_are_no_gates_are_named(text, error, message):
    with pytest.raises(error, match=message):
        regard.gate(text)(channels=64)


def test_a_chain_is_one_gate_after_the_other():
    chain = regard.gate("se(ratio=4) | ulsam | spatial(kernel=3)")(8).double().eval()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    want = x
    for gate in chain.gates:
        want = gate(want)
    torch.testing.assert_close(chain(x), want)
    assert list(chain.factors(x)) == ["c", "cyx", "yx"]
    assert regard.check(chain).holds


def test_the_model_itself_is_behind_no_gate_and_names_that_fit_are_told():
    """A pattern of all names leaves the model out; one of none is answered by modules that there are."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    inserted = regard.insert(model, "eca", "*")
    assert repr(inserted).startswith("Inserted(0: ")
    assert list(inserted.gates) == ["0", "1"]
    inserted.remove()
    with pytest.raises(ValueError, match=r"such as '0', '1'"):
        regard.insert(model, "eca", "bn*")
