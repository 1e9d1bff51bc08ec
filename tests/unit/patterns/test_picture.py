"""Pictures of patterns."""

import pytest
import torch

from regard import patterns as p
from regard.patterns import picture


def test_text_shows_the_mask():
    lines = picture.text(p.parse_pattern("Causal & Window(2)"), 4, 8).splitlines()
    assert lines == ["██", "████", "  ████", "    ████"]
    assert "head 1" in picture.text(p.PerHead(p.Window(2), p.Sinks(1)), 5)


def test_long_patterns_are_shown_in_blocks():
    shares = picture.shares(p.parse_pattern("Causal & Window(256)"), 4096, 32)
    assert shares.shape == (1, 32, 32)
    assert torch.equal(shares[0].nonzero()[:, 0] - shares[0].nonzero()[:, 1] <= 2, torch.ones(93, dtype=torch.bool))
    assert (shares[0].diagonal() == 0.5).all()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_files(tmp_path, ending):
    picture.save(
        {"window": (p.Window(3), 20), "heads": (p.PerHead(p.Window(2), p.Sinks(1)), 9)}, tmp_path / f"a.{ending}"
    )
    assert (tmp_path / f"a.{ending}").stat().st_size > 1000
    with pytest.raises(ValueError, match="path"):
        picture.save({"window": (p.Window(3), 20)}, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="length"):
        picture.text(p.Window(3), 0)
