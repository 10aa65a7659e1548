"""The prefix tree against sets of prefixes, and attention along its paths against one softmax over all keys in float64."""

import numpy as np
import pytest
import torch

from realrl.models.tree import WORTHWHILE, prefix_tree
from realrl.models.tree_attention import TreeAttention
from realrl.models.tree_flex import block_mask_of, flex_along_paths
from realrl.models.tree_parts import parts_of

CPU = torch.device("cpu")


def drawn(seed: int, longest: int = 12) -> list[np.ndarray]:
    """Sequences of few different tokens, of which some begin alike, repeat or begin one another."""
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 3, rng.integers(0, 8))
    rows = []
    for _ in range(rng.integers(1, 9)):
        own = rng.integers(0, rng.integers(1, 4), rng.integers(1, longest))
        rows.append(np.concatenate([common, own]) if rng.random() < 0.5 else own)
    return rows


def sees(tree) -> np.ndarray:
    """Which place (row) sees which (column): its own path, from the sequences' places alone."""
    seen = np.zeros((len(tree), len(tree)), dtype=bool)
    for places in tree.places:
        for index, place in enumerate(places):
            seen[place, places[: index + 1]] = True
    return seen


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("least", [1, WORTHWHILE, 10**6])
def test_each_sequence_lies_on_its_path(seed, least):
    sequences = drawn(seed)
    tree = prefix_tree(sequences, least)
    for sequence, places in zip(sequences, tree.places, strict=True):
        assert tree.ids_S[places].tolist() == sequence.tolist()
        assert tree.positions_S[places].tolist() == list(range(len(sequence)))
    # The nodes say the same: a token is seen within its node's subtree.
    last = np.zeros(len(tree), dtype=int)
    for node in tree.nodes:
        last[node.start : node.end] = node.last
    here = np.arange(len(tree))
    assert (((here[None] <= here[:, None]) & (here[:, None] < last[None])) == sees(tree)).all()


@pytest.mark.parametrize("seed", range(60))
def test_every_prefix_stands_once_where_all_are_shared(seed):
    sequences = drawn(seed)
    prefixes = {tuple(row[:end]) for row in sequences for end in range(1, len(row) + 1)}
    assert len(prefix_tree(sequences, least=1)) == len(prefixes)
    assert len(prefix_tree(sequences, least=10**6)) == sum(map(len, sequences))


def test_a_start_that_saves_too_little_is_copied():
    few, many = np.arange(WORTHWHILE - 1), np.arange(WORTHWHILE)
    for common, rows, tokens in ((few, 2, 2 * len(few) + 2), (many, 2, len(many) + 2), (few, 3, len(few) + 3)):
        assert len(prefix_tree([np.append(common, 100 + row) for row in range(rows)])) == tokens
    # A small branch in a larger one: only the small one's tokens are copied.
    rows = [[0] * 20 + [1, 2], [0] * 20 + [1, 3], [0] * 20 + [4]]
    assert len(prefix_tree([np.array(row) for row in rows])) == 20 + 2 + 2 + 1


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_attention_and_its_gradient(seed, window, softcap, sink):
    tree = prefix_tree(drawn(seed, longest=30), least=1)
    torch.manual_seed(seed)
    # Fewer key heads than query heads, and narrower values.
    shapes = {"query": (1, 6, len(tree), 8), "key": (1, 2, len(tree), 8), "value": (1, 2, len(tree), 5)}
    given = [torch.randn(shape, requires_grad=True) for shape in shapes.values()]
    sinks = torch.randn(6, requires_grad=True) if sink else None
    out, _ = TreeAttention(tree, CPU)(None, *given, None, sliding_window=window, softcap=softcap, s_aux=sinks)

    inputs = [*given, *([sinks] if sink else [])]
    exact = [one.detach().double().requires_grad_() for one in inputs]
    query, key, value = exact[0], *(one.repeat_interleave(3, dim=1) for one in exact[1:3])
    scores = query @ key.mT * 8**-0.5
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    seen = sees(tree) & (tree.positions_S[:, None] - tree.positions_S[None] < (window or len(tree)))
    scores = scores.masked_fill(~torch.from_numpy(seen), -torch.inf)
    if sink:
        scores = torch.cat([scores, exact[3][None, :, None, None].expand(1, -1, len(tree), 1)], dim=3)
    wanted = (scores.softmax(dim=-1)[..., : len(tree)] @ value).transpose(1, 2)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)

    # What CUDA uses; on a CPU it has no backward pass.
    fixed = [one.detach() for one in given]
    flex = flex_along_paths(
        *fixed, sinks if sinks is None else sinks.detach(), block_mask_of(tree, window, CPU), 8**-0.5, softcap
    )
    torch.testing.assert_close(flex.double(), wanted, atol=1e-5, rtol=1e-5)

    weights = torch.randn(out.shape)
    found = torch.autograd.grad(out, inputs, weights)
    for one, other in zip(found, torch.autograd.grad(wanted, exact, weights.double()), strict=True):
        torch.testing.assert_close(one.double(), other, atol=3e-5, rtol=1e-5)


def test_sharp_scores_of_padding_reach_no_gradient():
    """Responses of different lengths are padded to one part; a padded query and a key may have a score of thousands."""
    tree = prefix_tree([np.full(length, length) for length in (20, 19, 18)])
    torch.manual_seed(0)
    given = [(100 * torch.randn(1, 2, len(tree), 8)).requires_grad_() for _ in range(3)]
    assert parts_of(tree, None, CPU)[0].queries.shape == (3, 20)
    for softcap in (None, 1e6):
        out, _ = TreeAttention(tree, CPU)(None, *given, None, scaling=1.0, softcap=softcap)
        assert all(bool(one.isfinite().all()) for one in torch.autograd.grad(out.sum(), given))


def test_a_key_is_read_once_for_all_that_see_it():
    """A prompt of 100 tokens with 8 responses of 20: 9 blocks of their own, and one in which 160 queries see the prompt."""
    prompt = np.zeros(100, dtype=int)
    tree = prefix_tree([np.concatenate([prompt, np.full(20, row + 1)]) for row in range(8)])
    parts = parts_of(tree, None, CPU)
    blocks = [(part.queries.shape, part.keys.shape, part.causal) for part in parts]
    assert blocks == [((8, 20), (8, 20), True), ((1, 100), (1, 100), True), ((1, 160), (1, 100), False)]
    assert all(part.mask_BLK is None for part in parts)
    # With a window of 10 only the first 9 tokens of each response see the prompt.
    assert [part.queries.shape for part in parts_of(tree, 10, CPU)] == [(8, 20), (1, 100), (1, 8 * 9)]
