"""`regard.parallel` over processes of torch.distributed (gloo): four of them, started once.

One test, as starting processes is what takes time, and tests of a file may be dealt out to several workers.
"""

import ranks


def test_four_processes_compute_what_one_does():
    """Outputs and gradients of all kernels, a Llama's step and generation, a hybrid, and calls that fail."""
    found = ranks.launch(ranks.everything)
    failed = [f"rank {rank}: {told['failed']}" for rank, told in enumerate(found) if "failed" in told]
    assert not failed, "\n".join(failed)
    kernels(found)
    models(found)
    failures(found)


def kernels(found):
    """Every kernel, every plan, causal or not, packed, grouped heads, cross; by the precision of the case."""
    least = {"float32": 1e-5, "bfloat16": 3e-2}
    cases = [(name, error) for told in found for name, error in told.items() if name.split(", ")[0] in ranks.KINDS]
    assert len({name for name, _ in cases}) == 5 * (5 * 2 + 2) + 7 * 2 + 4 * 2
    for name, error in cases:
        assert error <= least.get(name.split(", ")[1], 1e-10), name


def models(found):
    """A Llama trains a step and generates from a shared cache, a hybrid of linear and softmax layers trains."""
    for told in found:
        for what in ("logits", "gradients", "step"):
            for how in ("ring", "heads", "gather"):
                assert told[f"{what}, {how}"] <= 1e-10, (what, how)
        assert told["generated"] == 0
        assert told["hybrid, output"] <= 1e-10
        assert told["hybrid, gradients"] <= 1e-10


def failures(found):
    """A call that does not fit is told to all; a rank that goes silent raises on all others within the limit."""
    for rank, told in enumerate(found):
        own = "ValueError: k: got 5 tokens, want the 6 that rank 2 holds by the plan"
        others = "RuntimeError: rank 2 cannot take part in this call; its own error says why"
        assert told["wrong call"] == (own if rank == 2 else others)
    assert [told["silent"] for told in found] == ["RuntimeError", "RuntimeError", "", "RuntimeError"]
