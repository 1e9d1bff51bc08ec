"""Conversations: the model's template around them, and whose words the tokens are."""

import json

import pytest

from regard.hosts import small
from regard.records.chat import encode_chat, read_messages
from regard.records.record import record

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
    "<s>{{ m['role'] }}\n{{ CONTENT }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": " user: what is 7 · 字? "},
    {"role": "assistant", "content": "user"},
    {"role": "user", "content": "user"},
]


@pytest.fixture
def tiny():
    """The shipped model with a template; its words stand as they are given or stripped."""
    model, tokenizer = small.load("tiny")
    tokenizer.chat_template = TEMPLATE.replace("CONTENT", "m['content']")
    return model, tokenizer


def words(tokens) -> list[str]:
    return ["".join(tokens.texts[start:stop]) for _, start, stop in tokens.turns]


def test_turns_are_the_messages_own_words(tiny):
    tokens = encode_chat(tiny[1], TALK)
    assert "".join(tokens.texts) == tiny[1].apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert [role for role, _, _ in tokens.turns] == [message["role"] for message in TALK]
    for said, message in zip(words(tokens), TALK, strict=True):
        assert message["content"] in said  # a token may hold a neighbour's character too
        assert len(said) <= len(message["content"]) + 2
    assert "".join(tokens.texts).endswith("<s>assistant\n")
    assert "".join(encode_chat(tiny[1], TALK[:3]).texts).endswith("user</s>\n")  # no header after an answer


def test_a_template_may_strip_but_not_rewrite(tiny):
    tiny[1].chat_template = TEMPLATE.replace("CONTENT", "m['content'] | trim")
    assert words(encode_chat(tiny[1], TALK))[1].strip() == TALK[1]["content"].strip()
    tiny[1].chat_template = TEMPLATE.replace("CONTENT", "m['content'] | upper")
    with pytest.raises(ValueError, match="--chat: got a chat template that rewrites messages"):
        encode_chat(tiny[1], TALK)


def test_a_generated_answer_is_a_turn(tiny):
    seen = record(tiny[0], tiny[1], TALK, generate=5)
    role, start, stop = seen.tokens["turns"][-1]
    assert (role, stop - start, stop) == ("assistant", 5, seen.n)
    assert "turns" not in record(tiny[0], tiny[1], "for item in items:", generate=5).tokens


def test_messages_are_read_from_json_or_are_the_users():
    assert read_messages(json.dumps(TALK)) == TALK
    assert read_messages("what?") == [{"role": "user", "content": "what?"}]
    assert read_messages('{"role": 1}') == [{"role": "user", "content": '{"role": 1}'}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('[{"role": "user"}]', r"messages\[0\]: got .*want \{'role'"),
        ("[]", "messages: got none, want at least one"),
        ("[3]", r"messages\[0\]: got 3"),
    ],
)
def test_other_json_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        read_messages(given)


def test_what_the_template_does_not_take_is_one_clear_error(tiny):
    with pytest.raises(ValueError, match=r"refuses .no critics., want roles in its order"):
        encode_chat(tiny[1], [{"role": "critic", "content": "bad"}])
    tiny[1].chat_template = None
    with pytest.raises(ValueError, match="--chat: got a model whose tokenizer has no chat template"):
        encode_chat(tiny[1], TALK)
