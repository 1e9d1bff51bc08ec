"""What is no plain Transformers model is taken apart, or told where it keeps one; what cannot be heard is refused."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

import regard
from regard.edits import HeadAblation
from regard.hosts.watch import watch
from regard.probes import Entropy, Induction
from unit.hosts.models import causal, tokens


class Sentences(torch.nn.Sequential):
    """What a SentenceTransformer looks like."""

    def _first_module(self): ...


def test_a_model_with_adapters_is_watched_and_swapped():
    ids = tokens(2, 11)
    adapted = peft.get_peft_model(
        causal("Llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    with torch.no_grad():
        plain = adapted(input_ids=ids).logits
        with watch(adapted, [Entropy(), Induction()]) as session:
            torch.testing.assert_close(adapted(input_ids=ids).logits, plain)
        assert session["induction"].keys() == {0, 1}
        with regard.swap(adapted, "window", size=3):
            assert not torch.allclose(adapted(input_ids=ids).logits, plain)
        with regard.steer(adapted, HeadAblation([0])):
            assert not torch.allclose(adapted(input_ids=ids).logits, plain)
        torch.testing.assert_close(adapted(input_ids=ids).logits, plain)


@pytest.mark.parametrize("enter", [watch, lambda model: regard.swap(model, "softmax"), regard.steer])
@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (torch.compile, "a OptimizedModule, want .* model._orig_mod"),
        (torch.nn.DataParallel, "a DataParallel, want .* model.module"),
        (Sentences, r"a Sentences, want .* model\[0\].auto_model"),
        (lambda model: type("TextPipeline", (), {"preprocess": None, "model": model})(), "want .* pipeline.model"),
    ],
)
def test_others_are_told_where_they_keep_their_model(enter, wrapped, said):
    with pytest.raises(TypeError, match=said), enter(wrapped(causal("Llama"))):
        pass


def test_what_is_compiled_or_traced_is_refused():
    model, ids = causal("Llama"), tokens(1, 7)
    for context in (watch(model), regard.swap(model, "softmax"), regard.steer(model)):
        with context, pytest.raises(Exception, match="a pass of LlamaForCausalLM that is traced, as for export"):
            torch.export.export(model, (ids,), strict=False)
    assert isinstance(model(input_ids=ids), transformers.utils.ModelOutput)
    model.model.layers[1].compile()
    with pytest.raises(RuntimeError, match=r"LlamaForCausalLM, of which model.layers.1 is compiled"), watch(model):
        pass
