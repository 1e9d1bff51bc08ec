"""Texts of tokens: joined they give the document back, in every script and with every kind of tokenizer."""

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from regard.hosts.load import load
from regard.records.token_texts import BROKEN, aligned, cut, decode, decoded, encode, label

SAMPLE = [
    "def f(x):\n    return x  # ok",
    "注意力是你所需要的一切。",
    "Всё, что вам нужно",
    "naïve café ﬁne e\u0301",
    "👩‍🔬🏳️‍🌈",
]
CHINESE = "注意力机制把每个词与其他词联系起来。"


def bytes_alone():
    """Byte-level BPE, every byte a token but for a few merges."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.train_from_iterator(SAMPLE, trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=280))
    return tokenizer


def byte_fallback():
    """BPE over characters with a prefix space, unknown ones as bytes, as Llama's and Gemma's."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: i for i, name in enumerate([*names, *"▁abcdefinotrux力"])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("i", "n")] if "in" in vocabulary else [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def unigram():
    """SentencePiece's unigram model with its normal form NFKC and unknown pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def word_pieces():
    """WordPiece that lowers, strips accents, drops spaces and control characters, and adds two special tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


KINDS = {"bytes": bytes_alone, "fallback": byte_fallback, "unigram": unigram, "pieces": word_pieces}
ADDED = ["<|end|>", "<tool>", "[MASK]"]


@cache
def built(kind):
    """With added tokens: a special one, a plain one, and one that swallows the spaces before it."""
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens([AddedToken(ADDED[0]), AddedToken(ADDED[2], lstrip=True)])
    tokenizer.add_tokens([AddedToken(ADDED[1])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def shipped(name):
    return load(name)[1]


documents = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from([*SAMPLE, *ADDED, " ", "\n\n", "\ufffd", "e\u0301", "ﬃ"])),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=documents)
@example(CHINESE)
@example("a <|end|>b[MASK] c  <tool>")
def test_texts_joined_are_the_document(kind, text):
    tokens = encode(built(kind), text)
    assert len(tokens.ids) == len(tokens.texts) == len(tokens.special)
    if tokens.ids:
        assert "".join(tokens.texts) == text
    for token, end in tokens.parts.items():
        assert token < end < len(tokens)
        assert tokens.texts[end]
    assert all(tokens.names[i] for i, text in enumerate(tokens.texts) if not text)


@pytest.mark.parametrize("name", ["tiny", "minilm"])
@settings(max_examples=40, deadline=None)
@given(text=documents)
@example(CHINESE)
def test_so_they_are_with_the_models_that_ship(name, text):
    tokens = encode(shipped(name), text)
    if tokens.ids:
        assert "".join(tokens.texts) == text


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
@settings(max_examples=60, deadline=None)
@given(text=documents.filter(lambda text: not any(name in text for name in (*ADDED, BROKEN))))
@example(CHINESE)
def test_ids_alone_are_decoded_whole(kind, text):
    """Texts of ids, joined, are what the tokenizer decodes all of them to; from any token on it is the rest."""
    tokenizer = built(kind)
    ids = tokenizer(text)["input_ids"]
    whole = "".join(decode(tokenizer, ids).texts)
    assert whole == tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_what_was_generated_goes_on_where_the_prompt_ended(kind):
    """From any token at which no character is open, the texts are those of the whole."""
    ids = built(kind)(CHINESE * 2)["input_ids"]
    whole = decode(built(kind), ids)
    for first in range(1, len(ids)):
        if first - 1 not in whole.parts:
            rest = decode(built(kind), ids, first)
            assert rest.texts == whole.texts[first:]
            assert {i + first: end + first for i, end in rest.parts.items()} == {
                i: end for i, end in whole.parts.items() if i >= first
            }


def test_a_character_is_its_last_tokens():
    """Three bytes of 注: two parts that name the third token, which has the text."""
    tokens = encode(built("bytes"), "a注b")
    *_, a, b = [i for i, text in enumerate(tokens.texts) if text]
    assert tokens.texts[a] == "注"
    assert tokens.texts[b] == "b"
    assert set(tokens.parts.values()) == {a}
    assert sorted(tokens.parts) == list(range(1, a))
    assert label(tokens.document, 0) == "a"
    assert [label(tokens.document, i) for i in range(1, a + 1)] == [*(f"注 {i}/{a}" for i in range(1, a)), "注"]
    assert label({"texts": ["<s>", ""], "names": {"1": "x"}}, 0) == "<s>"
    assert label({"texts": ["<s>", ""], "names": {"1": "x"}}, 1) == "x"
    assert decode(built("bytes"), tokens.ids).parts == tokens.parts


def test_spans_that_overlap():
    texts, parts = cut("aé日b", [(0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3), (3, 4)])
    assert texts == ["a", "", "é", "", "", "日", "b"]
    assert parts == {1: 2, 3: 5, 4: 5}
    assert cut("a 日", [(0, 1), (1, 3), (2, 3)]) == (["a", " ", "日"], {1: 2})
    assert cut(" x ", [(0, 0), (1, 2), (0, 0)]) == (["", " x ", ""], {})
    assert cut("  ", [(0, 0), (0, 0)]) == (["", "  "], {})


def test_special_tokens_within_the_text_are_not_doubled():
    tokens = encode(built("bytes"), "a <|end|>b")
    assert tokens.texts[-2:] == ["<|end|>", "b"]
    assert tokens.special[-2:] == [True, False]
    added = encode(built("pieces"), "no")
    assert (added.texts[0], added.texts[-1]) == ("", "")
    assert (added.names[0], added.names[len(added) - 1]) == ("[CLS]", "[SEP]")


class Slow:
    """A tokenizer without offsets, over the bytes of the text."""

    all_special_ids = (256,)

    def __call__(self, text):
        return {"input_ids": [256, *text.encode()]}

    def decode(self, ids, **how):
        return bytes(ids).decode(errors="replace")

    def convert_ids_to_tokens(self, i):
        return "<s>" if i == 256 else f"<{i:02X}>"


@settings(max_examples=60, deadline=None)
@given(text=documents.filter(bool))
@example(CHINESE)
def test_tokenizers_without_offsets(text):
    assert "".join(encode(Slow(), text).texts) == text


def test_bytes_that_never_become_a_character():
    """Broken bytes, as a model may generate them, are shown as such after four."""
    texts, parts = decoded(Slow(), [0x61, 0x80, 0x80, 0x80, 0x80, 0x80, 0x62])
    assert texts == ["a", "", "", "", "\ufffd" * 4, "", "\ufffdb"]
    assert parts == {1: 4, 2: 4, 3: 4, 5: 6}


def test_what_a_tokenizer_changed_is_found_again():
    assert aligned("Ab  c?", ["a", "b", " c", "x"], {})[0] == ["", "Ab", "  c?", ""]
