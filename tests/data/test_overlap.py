from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightning_dadpo.data.overlap import RUN, SHARE, SHORT, SHORTEST, Overlap, overlapping, words_of
from lightning_dadpo.data.rows import Message

SENTENCE = "Describe a time when you had to make a difficult decision at work"  # 13 words


def asked(text: str) -> list[Message]:
    return [Message("user", text)]


def found(test: str, *train: str) -> Overlap | None:
    return overlapping({"test": asked(test)}, [(f"t{at}", asked(text)) for at, text in enumerate(train)]).get("test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's  NEW,\n“Röschen”?", ["what", "s", "new", "röschen"]),
        ("snake_case **bold** 3.5", ["snake", "case", "bold", "3", "5"]),
        ("\uff21\uff22 wide \ufb01ne Straße", ["ab", "wide", "fine", "strasse"]),
        ("你好 world カナ", ["你", "好", "world", "カ", "ナ"]),
        ("?! 🙂", ["?!", "🙂"]),
    ],
)
def test_words_by_hand(text: str, words: list[str]) -> None:
    assert list(words_of(asked(text))) == words


def test_all_user_turns_and_no_others() -> None:
    turns = [
        Message("system", "Be brief."),
        Message("user", "Hi!"),
        Message("assistant", "Yes?"),
        Message("user", "Go"),
    ]
    assert words_of(turns) == ("hi", "go")


def test_E1_the_same_words_are_exact_whatever_their_spelling() -> None:
    assert found("How do I boil an egg?", "how do i  BOIL an egg") == Overlap("exact", "t0", 1.0)
    assert found("🙂", "🙂") == Overlap("exact", "t0", 1.0)
    assert found("🙂", "?") is None


def test_E1_a_conversation_counts_by_all_its_turns() -> None:
    tested = {"test": [Message("user", "Hello there"), Message("assistant", "Hi"), Message("user", "Tell me a joke")]}
    same = [Message("user", "hello there!"), Message("assistant", "How are you?"), Message("user", "tell me a joke")]
    assert overlapping(tested, [("t", same)]) == {"test": Overlap("exact", "t", 1.0)}
    assert overlapping(tested, [("t", asked("Tell me a joke")), ("u", asked("Hello there"))]) == {}


def test_coverage_by_hand() -> None:
    """Of 13 words the first 11 stand there: describe ... decision; the last two do not."""
    longer = (
        "In an interview: describe a time when you had to make a difficult decision without all the data you wanted"
    )
    assert found(SENTENCE, longer) == Overlap("near", "t0", 11 / 13)


@pytest.mark.parametrize("kind", ["changed", "lost", "put in"])
@pytest.mark.parametrize("length", [SHORT, 11, 12, 13, 30])
def test_E1_one_edited_word_anywhere_is_found(kind: str, length: int) -> None:
    words = [f"w{at}" for at in range(length)]
    for at in range(length):
        edited = words[:at] + {"changed": ["x"], "lost": [], "put in": ["x", words[at]]}[kind] + words[at + 1 :]
        if kind == "lost" and len(edited) < SHORT:
            continue  # a short prompt now
        overlap = found(" ".join(edited), " ".join(words))
        assert overlap is not None, (kind, at)
        assert overlap.reason == "near"


def test_E1_two_edited_words_in_twenty_are_found() -> None:
    words = [f"w{at}" for at in range(20)]
    for first, second in itertools.combinations(range(20), 2):
        edited = ["x" if at in (first, second) else word for at, word in enumerate(words)]
        assert found(" ".join(edited), " ".join(words)) is not None, (first, second)


def test_a_short_prompt_must_stand_there_as_a_whole() -> None:
    assert found("What is the capital of Spain?", "What is the capital of France?") is None
    assert found("What is the capital of France?", "Please, what is the capital of France?") == Overlap(
        "near", "t0", 1.0
    )
    assert found("Write a poem now", "write a poem, now") == Overlap("exact", "t0", 1.0)
    assert found("Write a poem now", "Write a poem now about the sea and its many moods") is None


def test_a_shared_form_is_no_overlap() -> None:
    test = "Which creature is the biggest on earth? Answer in one or two words."
    assert found(test, "Pick a name for a little wooden sailing boat. Answer in one or two words.") is None
    assert (
        found(test, "Which creature is", "the biggest on earth", "Is the whale the biggest on earth, in one word?")
        is None
    )


def test_runs_of_two_training_prompts_are_not_added_up() -> None:
    first, second = "a b c d e f", "g h i j k l"
    assert found("a b c d e f g h i j k l m n", first, second) is None
    assert found("a b c d e f g h i j k l m n", f"{first} x {second}") == Overlap("near", "t0", 12 / 14)
    assert found("a b c d e f g h i j", "a b c x d e f g") == Overlap("near", "t0", 0.7)
    assert found("a b c d e f g h i j", "a b c x d e f") is None


def test_the_best_training_prompt_is_named_and_an_exact_one_wins() -> None:
    words = SENTENCE.split()
    worse, better = " ".join(words[:10]), " ".join(words[:12])
    assert found(SENTENCE, worse, better, better) == Overlap("near", "t1", 12 / 13)
    assert found(SENTENCE, f"{SENTENCE} or at home", SENTENCE.upper(), SENTENCE) == Overlap("exact", "t1", 1.0)


def test_E1_two_test_prompts_of_the_same_words_are_both_found() -> None:
    tested = {"b": asked("Boil an egg"), "a": asked("boil an EGG!"), "c": asked("Fry an egg")}
    assert list(overlapping(tested, [("t", asked("boil an egg"))])) == ["b", "a"]


def test_what_is_said_of_it() -> None:
    assert str(Overlap("exact", "t1", 1.0)) == "the same words as t1"
    assert str(Overlap("near", "t1", 11 / 13)) == "85% of its words stand in t1"


def judged_slowly(test: tuple[str, ...], train: tuple[str, ...]) -> tuple[str, float] | None:
    """The definition word by word: a word is covered if a run of RUN words around it stands in the training prompt."""
    if test == train:
        return "exact", 1.0
    joined, covered = f" {' '.join(train)} ", 0
    for place in range(len(test)):
        around = range(max(0, place - RUN + 1), place + 1)
        runs = [test[start : start + RUN] for start in around if start + RUN <= len(test)]
        covered += any(f" {' '.join(run)} " in joined for run in runs)
    share = covered / len(test)
    needed = 1.0 if len(test) < SHORT else SHARE
    return ("near", share) if share >= needed and len(test) >= SHORTEST else None


def test_against_the_definition_read_word_by_word() -> None:
    random, seen = np.random.default_rng(0), []
    for length, other in itertools.product(range(1, 16), range(1, 30, 2)):
        for _ in range(6):  # few letters, so that runs meet by chance, and often twice
            test, train = (tuple(random.choice(["a", "b", "c", "d"], size).tolist()) for size in (length, other))
            expected = judged_slowly(test, train)
            overlap = found(" ".join(test), " ".join(train))
            assert (overlap and (overlap.reason, overlap.share)) == (expected and (expected[0], expected[1]))
            seen.append(expected)
    assert 50 < sum(one is not None and one[0] == "near" for one in seen) < len(seen) - 50
