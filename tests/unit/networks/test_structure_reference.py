"""Label attention and the pose lifter against numbers that their authors' code gave."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from regard.networks.joint_parsing import HeadScores, best_tree
from regard.networks.label_attention import LabelAttention, SpanParser
from regard.networks.pose_lifting import MIRRORED, NOTHING, PARENTS, Drops, PoseLifter, partitions

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "structure.json").read_text())


def given(name, key):
    return torch.tensor(VALUES[name][key], dtype=torch.float64)


def test_label_attention_is_its_authors():
    state = {key: torch.tensor(value, dtype=torch.float64) for key, value in VALUES["label_attention"]["state"].items()}
    layer = LabelAttention(6, 3, 4, 2).double()
    names = {"query": "w_qs", "key.0": "w_ks", "value.0": "w_vs", "join.0.weight": "proj.weight"}
    names |= {"reduce.weight": "reduce_proj.weight", "norm.scale": "layer_norm.a_2", "norm.shift": "layer_norm.b_2"}
    layer.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    x, mask = torch.full((2, 5, 6), 7.0, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [3]])
    for row, name in enumerate(("long", "short")):
        x[row, mask[row]] = given("label_attention", f"{name}_x")
    out, shown = layer(x, key_mask=mask), layer.intermediates(x, key_mask=mask)["attention"][:, :, 0]
    for row, name in enumerate(("long", "short")):
        for ours, key in ((out[row, mask[row]], "out"), (shown[row][:, mask[row]], "weights")):
            torch.testing.assert_close(ours, given("label_attention", f"{name}_{key}"), rtol=1e-4, atol=1e-5)


def test_label_attention_with_position_apart_is_its_authors():
    state = VALUES["label_attention_apart"]["state"]
    state = {key: torch.tensor(value, dtype=torch.float64) for key, value in state.items()}
    layer = LabelAttention(6, 3, 4, 2, positional=2).double()
    names = {"reduce.weight": "reduce_proj.weight", "norm.scale": "layer_norm.a_2", "norm.shift": "layer_norm.b_2"}
    for half in (0, 1):
        names |= {f"key.{half}": f"w_ks{half + 1}", f"value.{half}": f"w_vs{half + 1}"}
        names[f"join.{half}.weight"] = f"proj{half + 1}.weight"
    query = torch.cat([state["w_qs1"], state["w_qs2"]], -1)
    layer.load_state_dict({"query": query} | {ours: state[theirs] for ours, theirs in names.items()})
    x = given("label_attention_apart", "x")[None]
    for ours, key in ((layer(x), "out"), (layer.intermediates(x)["attention"][:, :, 0], "weights")):
        torch.testing.assert_close(ours[0], given("label_attention_apart", key), rtol=1e-4, atol=1e-5)


def test_scores_of_heads_are_their_authors():
    state = {key: torch.tensor(value, dtype=torch.float64) for key, value in VALUES["heads"]["state"].items()}
    scores = HeadScores(5, 3, 2).double()
    names = {"head": "arc_h", "dependent": "arc_c", "from_head": "type_h", "from_dependent": "type_c"}
    names = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in names.items() for leaf in ("weight", "bias")}
    names |= {"pair": "attention.dep_weight", "both.weight": "bilinear.U", "both.bias": "bilinear.bias"}
    names |= {"one.weight": "bilinear.W_l", "other.weight": "bilinear.W_r"}
    scores.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    for ours, key in zip(scores(given("heads", "x")[None]), ("arcs", "types"), strict=True):
        torch.testing.assert_close(ours[0], given("heads", key), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["one", "four", "six", "seven"])
def test_best_trees_are_their_authors(name):
    tree = best_tree(*(given("trees", f"{name}_{key}") for key in ("spans", "arcs")), phrases=True)
    assert torch.equal(tree.labels.double(), given("trees", f"{name}_labels"))
    assert torch.equal(tree.heads.double(), given("trees", f"{name}_heads"))
    assert tree.score == pytest.approx(given("trees", f"{name}_score").item(), rel=1e-5)


def filled(name, shape):
    """The numbers of a name and a shape, as where the values were made."""
    count, spread = math.prod(shape), 1.0 if len(shape) == 1 else shape[-1] ** -0.5
    place = torch.arange(count, dtype=torch.float64) + sum(i * ord(x) for i, x in enumerate(name, 1)) % 997
    return (torch.sin(1.7 * place * place % 6.1) * spread).reshape(tuple(shape))


BLOCK = {
    **{"over_joints": "norm1", "before": "norm_att1", "behind": "norm2", "maps": "attn.qkv", "out": "attn.proj"},
    **{"first.map": "GCN_Block1.conv1d", "second.map": "GCN_Block2.conv1d"},
    **{name: f"uMLP.linear{sizes}.linear.0" for name, sizes in (("down", "512_256"), ("middle", "256_256"))},
    "up": "uMLP.linear256_512.linear.0",
}
OUTSIDE = {"embed.0": "embed.fc1", "embed.1": "embed.fc3", "embed.2": "embed.fc4", "embed.3": "embed.fc5"}
OUTSIDE |= {"norm": "net.norm", "out": "out"}


def theirs(name):
    where, _, leaf = name.rpartition(".")
    if where in OUTSIDE:
        return f"{OUTSIDE[where]}.{leaf}"
    _, number, rest = where.split(".", 2)
    return f"net.blocks.{number}.{BLOCK[rest]}.{leaf}"


def test_the_pose_lifter_is_its_authors():
    network = PoseLifter(depth=2).double().eval()
    for name, parameter in network.named_parameters():
        one = (*parameter.shape, 1) if ".map.weight" in name else parameter.shape
        parameter.data = filled(theirs(name), one).reshape(parameter.shape)
    out = network(filled("poses", (1, 17, 2)))
    torch.testing.assert_close(out, given("pose_lifter", "out"))


class Factors(nn.Module):
    """Multiplies by one number after the other."""

    def __init__(self, *factors):
        super().__init__()
        self.factors = list(factors)

    def forward(self, x):
        return x * self.factors.pop(0)


def test_a_block_that_is_left_out_adds_nothing_and_the_others_are_raised():
    """The branches and the network of the last of two blocks each come at 0 or 1.25 times their size, in every pose
    by itself; those of the first always come."""
    network = PoseLifter(16, 2, 2, Drops(0.0, 0.0, 0.0, 0.0, 0.2), seed=0).double()
    poses = torch.randn(64, 17, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    out, ends = network.train()(poses), []
    for factors in ((0.0, 0.0), (0.0, 1.25), (1.25, 0.0), (1.25, 1.25)):
        network.eval().blocks[1].drop_block = Factors(*factors)
        ends.append(network(poses))
    apart = torch.stack([(out - end).abs().amax((1, 2)) for end in ends])
    assert apart.amin(0).max() < 1e-12
    counts = (apart < 1e-12).sum(1).tolist()
    assert sum(counts) == 64
    assert counts[3] > 28
    assert min(counts[1:3]) > 2


@pytest.mark.parametrize("part", ["given", "weights", "out", "mlp"])
def test_each_chance_leaves_something_out_in_training_alone(part):
    nothing = dict.fromkeys(("given", "weights", "out", "mlp", "block"), 0.0)
    network = PoseLifter(16, 1, 2, Drops(**nothing | {part: 0.4}), seed=0).double()
    plain = PoseLifter(16, 1, 2, NOTHING, seed=0).double()
    poses = torch.randn(2, 17, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.eval()(poses), plain.train()(poses))
    assert (network.train()(poses) - plain(poses)).abs().max() > 1e-4
    with pytest.raises(ValueError, match=rf"{part}.*below 1"):
        Drops(**{part: 1.0})


def test_the_skeleton_is_in_four_parts():
    parts = partitions()
    torch.testing.assert_close(parts, given("pose_lifter", "adjacency"))
    torch.testing.assert_close(parts.sum((0, 1)), torch.ones(17, dtype=torch.float64))
    assert parts.count_nonzero() == 17 + 2 * (len(PARENTS) - 1) + 2 * len(MIRRORED)


@pytest.mark.parametrize("ways", [(True, False), (False, True), (False, False)])
def test_a_way_that_is_closed_carries_nothing(ways):
    """Without ways, neither what attention reads nor what is convolved first changes more than its own branch."""
    both, closed = (PoseLifter(16, 1, 2, ways=given, seed=0).double().eval() for given in ((True, True), ways))
    poses = torch.randn(2, 17, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (both(poses) - closed(poses)).abs().max() > 1e-3
    if ways == (False, False):
        torch.nn.init.zeros_(closed.blocks[0].second.map.weight)
        before = closed(poses)
        torch.nn.init.normal_(closed.blocks[0].first.map.weight)
        torch.testing.assert_close(closed(poses), before)


def test_spans_take_halves_from_each_side_by_hand():
    """Of the fences 1 and 3: forward halves of words 3 and 1, backward halves of words 2 and 4."""
    network = SpanParser(13, 2, 8, 4, "labels", 9, seed=0).double()
    read = []
    network.first.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    words = torch.randint(13, (1, 6), generator=torch.Generator().manual_seed(0))
    network(words)
    heads = network.heads(words)[0].unflatten(1, (2, 4))
    front, back = heads[..., :2].flatten(1), heads[..., 2:].flatten(1)
    torch.testing.assert_close(read[0][0, 1, 3], torch.cat([front[3] - front[1], back[4] - back[2]]))


def test_a_seed_draws_the_parsers_weights():
    first, same, other = (
        torch.cat([each.flatten() for each in SpanParser(13, 2, 8, 4, "labels", 9, seed=seed).parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
