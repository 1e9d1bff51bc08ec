"""Text tasks, read back with an encoder whose tokens are characters."""

import pytest
from torch import Generator

from regard.tasks import ColouredObjects, DocumentQuestion, FewShot, IndirectObject, Passkey, plain_encoder, word_ids

BOS = 1


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def read(task, length: int, seed: int = 0) -> tuple[str, list[str]]:
    """The text of an example, and its answers, each a run of marked characters."""
    example = task.sample(Generator().manual_seed(seed), length)
    assert len(example.ids) == len(example.answers) == length
    text = "".join(map(chr, example.ids.tolist()))
    marked = "".join(c if a else "\0" for c, a in zip(text, example.answers.tolist(), strict=True))
    return text, [answer for answer in marked.split("\0") if answer]


@pytest.mark.parametrize("seed", range(5))
def test_the_indirect_object_is_the_name_that_gives_nothing(seed):
    text, answers = read(IndirectObject(encode, BOS), 499, seed)
    *_, line = text.strip().split("\n")
    both = {line.split()[1], line.split()[3]}
    giver = line.split(", ")[1].split()[0]
    assert text.startswith(chr(BOS))
    assert {answers[-1].strip()} == both - {giver}


@pytest.mark.parametrize("seed", range(5))
def test_the_colour_is_the_colour_of_the_object(seed):
    text, answers = read(ColouredObjects(encode, objects=5), 503, seed)
    *_, line = text.strip().split("\n")
    asked = line.split("is the ")[1].split("?")[0]
    assert f"{answers[-1]} {asked}" in line.split("?")[0]


@pytest.mark.parametrize("seed", range(5))
def test_few_shot_asks_only_for_labels_that_were_shown(seed):
    text, answers = read(FewShot(encode, kinds=3, shots=11), 701, seed)
    *_, episode = text.split("Labels:\n")
    labels = [line.split(" -> ")[1] for line in episode.strip().split("\n")]
    repeats = len(labels) - len(set(labels))
    assert [a.strip() for a in answers[len(answers) - repeats :]] == [
        label for i, label in enumerate(labels) if label in labels[:i]
    ]


@pytest.mark.parametrize(("depth", "at"), [(0.0, 0), (1.0, 1), (None, None)])
def test_the_pass_key_stands_at_its_depth_and_is_asked_for_at_the_end(depth, at):
    text, (answer,) = read(Passkey(encode, digits=7, depth=depth), 401)
    hidden = f" The pass key is{answer}. Remember it."
    question = f" What is the pass key? The pass key is{answer}"
    assert len(answer.strip()) == 7
    assert text.endswith(question)
    assert text.count(hidden) == 1
    if at is not None:
        assert text.index(hidden) == at * (401 - len(hidden) - len(question))


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_stands_in_a_document(seed):
    text, answers = read(DocumentQuestion(encode, BOS, questions=2), 997, seed)
    told, *questions = text.strip().split("\nQuestion: ")
    assert len(answers) == len(questions) == 2
    for question in questions:
        assert f" {question}" in told


@pytest.mark.parametrize("kind", [IndirectObject, ColouredObjects, FewShot, Passkey, DocumentQuestion])
def test_too_short_a_length_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: length: got 13 tokens, want at least"):
        kind(encode).sample(Generator().manual_seed(0), 13)


def test_words_are_tokens_of_a_space_and_letters():
    class Letters:
        texts = (" cat", "cat", " Cat", " at", " dogs", " x1y", " naïve")

        def __len__(self) -> int:
            return len(self.texts)

        def decode(self, ids):
            return self.texts[ids[0]]

        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return [self.texts.index(text)]

    assert word_ids(Letters()) == (0, 4)
    assert plain_encoder(Letters())(" dogs") == (4,)
