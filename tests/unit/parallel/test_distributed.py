"""`regard.parallel` over processes of torch.distributed (gloo), four of them, started once for all tests here."""

import pytest

import ranks


@pytest.fixture(scope="module")
def found():
    came = ranks.launch(ranks.everything)
    failed = [f"rank {rank}: {told['failed']}" for rank, told in enumerate(came) if "failed" in told]
    assert not failed, "\n".join(failed)
    return came


def test_outputs_and_gradients_are_those_of_one_process(found):
    """Every kernel, every plan, causal or not, packed, grouped heads, cross; by the precision of the case."""
    least = {"float32": 1e-5, "bfloat16": 3e-2}
    cases = [(name, error) for told in found for name, error in told.items() if name.split(", ")[0] in ranks.KINDS]
    assert len({name for name, _ in cases}) == 5 * (5 * 2 + 2) + 7 * 2 + 4 * 2
    for name, error in cases:
        assert error <= least.get(name.split(", ")[1], 1e-10), name


def test_a_llama_trains_a_step_as_in_one_process(found):
    for told in found:
        for how in ("ring", "heads", "gather"):
            for what in ("logits", "gradients", "step"):
                assert told[f"{what}, {how}"] <= 1e-10, (what, how)


def test_a_llama_generates_from_a_cache_that_ranks_share(found):
    assert [told["generated"] for told in found] == [0.0] * ranks.WORLD


def test_a_hybrid_of_linear_and_softmax_layers(found):
    for told in found:
        assert told["hybrid, output"] <= 1e-10
        assert told["hybrid, gradients"] <= 1e-10


def test_a_call_that_does_not_fit_is_told_to_all(found):
    for rank, told in enumerate(found):
        own = "ValueError: k: got 5 tokens, want the 6 that rank 2 holds by the plan"
        others = "RuntimeError: rank 2 cannot take part in this call; its own error says why"
        assert told["wrong call"] == (own if rank == 2 else others)


def test_a_rank_that_goes_silent_raises_on_all_within_the_limit(found):
    assert [told["silent"] for told in found] == ["RuntimeError", "RuntimeError", "", "RuntimeError"]
