"""The best tree of spans and heads against every tree there is, and what right scores give back."""

import itertools

import pytest
import torch

from regard.networks.joint_parsing import JointParser, best_tree


def ways(left, right):
    """Every span joined of two, down to words: (head, spans that are labelled, word -> head)."""
    if right - left == 1:
        for spans in ([], [(left, right)]):
            yield right, spans, {}
        return
    for middle in range(left + 1, right):
        for (a, first, up), (b, second, down) in itertools.product(ways(left, middle), ways(middle, right)):
            for head, rest, gone, span in ((a, b, second, (middle, right)), (b, a, first, (left, middle))):
                if span in gone or span[1] - span[0] == 1:
                    for own in ([], [(left, right)]):
                        yield head, [*first, *second, *own], {**up, **down, rest: head}


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_best_tree_is_that_of_enumeration(n):
    generator = torch.Generator().manual_seed(n)
    spans, heads = torch.randn(n + 1, n + 1, 3, generator=generator), torch.randn(n + 1, n + 1, generator=generator)
    found = {}
    for root, labelled, above in ways(0, n):
        if (0, n) in labelled:
            total = 0.3 * sum(spans[span].max().item() for span in labelled) + 0.7 * heads[root, 0].item()
            total += 0.7 * sum(heads[word, head].item() for word, head in above.items())
            found[total] = labelled, {**above, root: 0}
    labelled, above = found[max(found)]
    tree = best_tree(spans, heads, share=0.3)
    assert tree.score == pytest.approx(max(found), abs=1e-6)
    assert tree.heads.tolist() == [above[word + 1] for word in range(n)]
    assert {tuple(place) for place in tree.labels.nonzero().tolist()} == set(labelled)
    assert all(tree.labels[span] == spans[span].argmax() + 1 for span in labelled)


def test_a_parser_learns_two_sentences_by_heart():
    """Their spans, heads and types, which agree; a label's score is above nothing's, which is zero."""
    model = JointParser(9, 2, 3, 16, 4, longest=8, seed=0, apart=True, hidden=8)
    words = torch.tensor([[7, 0, 1, 2, 3, 8], [7, 3, 2, 1, 0, 8]])
    labels, heads = torch.zeros(2, 5, 5, dtype=torch.int64), torch.tensor([[2, 4, 2, 0], [0, 4, 4, 1]])
    labels[:, 0, 4], labels[0, 0, 3], labels[1, 1, 4] = 1, 2, 2
    types = torch.tensor([[0, 1, 2, 0], [2, 0, 1, 1]])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        model.loss(words, labels, heads, types).backward()
        optimiser.step()
    for row, (tree, kinds) in enumerate(model.parse(words)):
        assert torch.equal(tree.labels, labels[row])
        assert torch.equal(tree.heads, heads[row])
        assert torch.equal(kinds, types[row])


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match="spans, heads"):
        best_tree(torch.zeros(4, 4, 2), torch.zeros(3, 3))
