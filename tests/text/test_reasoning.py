"""Reasoning and answer, whatever the pieces that the text arrives in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiefsee.text import ReasoningSplitter, split_reasoning


@pytest.mark.parametrize(
    ("text", "starts_inside", "reasoning", "answer"),
    [
        ("hm\n</think>\n\nyes", True, "hm\n", "yes"),  # R1
        ("hm</think>yes", True, "hm", "yes"),  # V3.1, V3.2, V4
        ("<think>\nhm</think>yes", False, "hm", "yes"),  # the first R1 template
        ("\n<think>hm</think>yes", False, "hm", "yes"),
        ("yes", False, "", "yes"),  # thinking off
        ("use <think> tags", False, "", "use <think> tags"),
        ("<thin", False, "", "<thin"),
        ("cut off </thi", True, "cut off </thi", ""),
        ("hm</think>a</think>b", True, "hm", "a</think>b"),
        ("</think>yes", True, "", "yes"),
        ("", True, "", ""),
    ],
)
def test_known_forms(text, starts_inside, reasoning, answer):
    assert split_reasoning(text, starts_inside) == (reasoning, answer)


PARTS = st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "th", "\n", " ", "a", "é", "k>"]), max_size=12)


@given(PARTS, st.booleans(), st.data())
def test_pieces_do_not_matter(parts, starts_inside, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    splitter = ReasoningSplitter(starts_inside)
    deltas = [splitter.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    deltas.append(splitter.flush())
    joined = ("".join(d.reasoning for d in deltas), "".join(d.answer for d in deltas))
    assert joined == split_reasoning(text, starts_inside)


def test_same_as_deepseeks_parser():
    """V4: the package's own parser gives the same two parts."""
    import deepseek_recipe as recipe

    pieces = ["Let me ", "see.\nYes</th", "ink>The answer", " is 4."]
    conversation = recipe.Conversation([recipe.UserMessage("2+2?")])
    request = recipe.ConversationRequest(conversation, recipe.ModelVersion.DeepseekV4Pro)
    options = recipe.ParsingOptions(thinking_initial_stage=recipe.ThinkingInitialStage.ReasoningStart)
    generator = recipe.ChatCompletionRequest.chunk_generator(request, "id", "model")
    processor = recipe.StreamProcessor(generator, options)
    chunks = [c for piece in pieces for c in processor.push(recipe.InferenceChunk.text(piece, 1))]
    chunks += processor.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
    deltas = [json.loads(c.to_json())["choices"][0]["delta"] for c in chunks]
    theirs = tuple("".join(d[key] or "" for d in deltas) for key in ("reasoning_content", "content"))
    assert split_reasoning("".join(pieces), starts_in_reasoning=True) == theirs
