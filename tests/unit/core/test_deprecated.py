"""Names of 0.1 work, and warn."""

from dataclasses import replace

import pytest
import torch

import regard
from regard.core.mechanism import LayerSpec, Mechanism, Traits

MASK = torch.tensor([[True, True, False]])


def test_a_layout_takes_and_gives_the_old_field():
    """`Layout(keys=)`, `layout.keys`, and `replace` with either."""
    with pytest.deprecated_call(match="keys= is now key_mask="):
        layout = regard.Layout(keys=MASK)
    assert layout.key_mask is MASK
    with pytest.deprecated_call(match="Layout.keys is now key_mask"):
        assert layout.keys is MASK
    with pytest.deprecated_call():
        assert replace(layout, keys=~MASK).key_mask[0, 2]
    assert regard.Layout(True, MASK).key_mask is MASK


def test_traits_take_and_give_the_old_field():
    """`Traits(two_sided=)`, `traits.two_sided`."""
    with pytest.deprecated_call():
        traits = Traits(two_sided=False)
    with pytest.deprecated_call():
        assert traits.two_sided is traits.bidirectional is False


def test_padding_is_given_to_extend_by_the_old_name():
    """`extend(keys=)` is `extend(key_mask=)`."""
    softmax, (q, k, v) = regard.build("softmax"), torch.randn(3, 1, 2, 3, 5).unbind()
    new, _ = softmax.extend(q, k, v, softmax.start(1), key_mask=MASK)
    with pytest.deprecated_call():
        old, _ = softmax.extend(q, k, v, softmax.start(1), keys=MASK)
    torch.testing.assert_close(old[:, :, :2], new[:, :, :2])


def test_a_mechanism_written_for_the_old_names_works():
    """Its `host` is its `layer`; its `extend` is given what it declares."""
    with pytest.deprecated_call(match=r"Old\.host is now layer"):

        class Old(Mechanism):
            """Declares what 0.1 asked for."""

            host = LayerSpec(rotary=False)

            def extend(self, q, k, v, state, keys=None, **signals):
                return q, keys

    assert Old.layer == LayerSpec(rotary=False)
    assert Old().extend(MASK, MASK, MASK, None, key_mask=MASK)[1] is MASK


def test_the_old_name_of_the_layer_specification():
    """`regard.Host` is `regard.LayerSpec`."""
    with pytest.deprecated_call():
        assert regard.Host is regard.LayerSpec
