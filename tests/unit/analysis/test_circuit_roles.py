"""Roles told from maps made by hand, stages against path patching itself, and heads that look where they are told."""

import pytest
import torch

from regard.analysis.circuit_roles import CircuitRoles, Mentions, circuit_roles, detector, looked_at
from regard.analysis.flow import GivenMaps
from regard.analysis.head_paths import PathsToHeads
from regard.analysis.path_patching import PathPatching
from regard.analysis.planted import planted_model
from regard.analysis.sweep import LogitDifference, Pair, heads_of
from regard.edits import AttendTo
from regard.hosts.attach import attach
from regard.hosts.watch import watch
from regard.laws import examine, examples_of
from regard.probes.head_statistics import RowMean


def mentions(seed: int = 0) -> Mentions:
    base, donor = torch.randint(0, 29, (2, 11), generator=torch.Generator().manual_seed(seed))
    return Mentions(Pair(base, donor, LogitDifference(3, 8)), 2, 6, (2,))


def test_detectors_are_told_by_where_they_look():
    maps = torch.full((1, 4, 11, 11), 0.02)
    maps[0, :, :, 0] = 0.9  # sinks are not what a head looks at
    for head, key in enumerate((2, 3, 5, 4)):
        maps[0, head, 6, key] = 0.3
    given, one = [GivenMaps(maps)], [mentions()]
    assert [looked_at(given[0], (0, head), 6) for head in range(4)] == [2, 3, 5, 4]
    roles = [detector(given, one, (0, head)) for head in range(4)]
    assert roles == ["duplicate token", "induction", "previous token", "other"]


def test_stages_are_those_of_path_patching():
    model, given = planted_model([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]), [mentions(1), mentions(2)]
    found = circuit_roles(model, given, share=0.67)
    direct = dict(
        zip(heads_of(model), PathPatching().run(model, [one.pair for one in given]).mean.tolist(), strict=True)
    )
    best = sorted(direct, key=lambda head: -direct[head])
    assert list(found.heads["mover"]) == [head for head in best[:4] if direct[head] > 0]
    assert list(found.heads["negative mover"]) == [head for head in best[:-5:-1] if direct[head] < 0]
    told = found.heads["inhibition"] + found.heads["content gatherer"]
    above = [head for head in found.heads["mover"] if head[0] > 0]
    into = PathsToHeads(above, "q").run(model, [one.pair for one in given])
    want = [(site.layer, site.head) for site, effect in into.ranked()[:4] if effect > 0]
    assert above
    assert set(told) == set(want)
    assert {row["role"] for row in found.table()} == {role for role, heads in found.heads.items() if heads}
    assert found.shared(found) == 1
    assert not circuit_roles(model, given, share=0.67, stages=1).heads["content gatherer"]


def test_circuits_share_heads_whatever_their_roles():
    """Of three heads and four, two are the same."""
    one = CircuitRoles({"mover": ((1, 0), (1, 2)), "inhibition": ((0, 1), (1, 2))}, {})
    other = CircuitRoles({"inhibition": ((1, 2), (0, 0)), "mover": ((0, 1), (0, 2))}, {})
    assert one.every == [(0, 1), (1, 0), (1, 2)]
    assert one.shared(other) == other.shared(one) == 2 / 3
    assert one.shared(CircuitRoles({}, {})) == 0


def test_wrong_mentions_shares_and_stages_are_told():
    pair = mentions().pair
    for arguments in ((6, 2, (2,)), (2, 6, ()), (2, 6, (11,))):
        with pytest.raises(ValueError, match="mentions"):
            Mentions(pair, *arguments)
    for more, name in (({"share": 1.0}, "share"), ({"stages": 5}, "stages")):
        with pytest.raises(ValueError, match=name):
            circuit_roles(planted_model(), [mentions()], **more)
    with pytest.raises(ValueError, match="mentions"):
        circuit_roles(planted_model(), [])


class Rows(RowMean):
    """The last row of layer 1's maps."""

    name = "rows"

    def update(self, tile):
        if tile.layer == 1:
            self.weights = tile.weights[:, :, -1]


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_heads_look_at_what_they_are_told(strength):
    model, ids, probes = planted_model(), torch.arange(7)[None].repeat(2, 1), [Rows(), Rows()]
    edit = AttendTo({0: [(1, 2), (4, 6)], 1: [(3, 4)]}, strength, heads={1: [0]}, rows="last")
    with torch.no_grad():
        with watch(model, [probes[0]]):
            model(ids)
        with attach(model, edits=[edit], probes=[probes[1]]):
            model(ids)
    want = probes[0].weights.clone()
    even = torch.tensor([[0, 1 / 3, 0, 0, 1 / 3, 1 / 3, 0], [0, 0, 0, 1, 0, 0, 0]], dtype=want.dtype)
    want[:, 0] = (1 - strength) * want[:, 0] + strength * even
    torch.testing.assert_close(probes[1].weights, want)


def test_the_edit_obeys_the_laws_of_edits_and_wants_keys():
    for sample in examples_of(AttendTo):
        for law in ("identity", "rows", "place", "groups", "padding", "decode"):
            finding = examine(sample, law, kind="edit")
            assert finding.verdict in ("holds", "not claimed"), f"{law}: {finding.detail}"
    with pytest.raises(ValueError, match="keys"):
        AttendTo([(3, 3)])
    with pytest.raises(ValueError, match="strength"):
        AttendTo([(1, 3)], 1.5)
