"""One far needle per family, by weights in closed form: what comparing with a reference cannot show.

Two implementations that share a wrong RoPE layout agree with each other on random weights, and a wrong
layout that queries and keys share even keeps scores relative. Trained weights, though, put what should be
found at any distance into channels that turn slowly. So do these: the needle's key lies in one channel
that turns slowly in the published layout and fast in the other one (the distance is chosen so that it
then points away). Nothing is compared with transformers here: the answer is known.

A hidden state is one-hot: tokens FILLER, NEEDLE, QUERY are channels 0 to 2, attention writes channel ANSWER
if it finds the needle, and the head reads channels as tokens.
"""

from __future__ import annotations

import math

import pytest
import torch

from tests.family import HEAVY, SPARSE
from tests.tiny import tiny_llm
from tiefsee import Sampling
from tiefsee.model import Network
from tiefsee.ops import Operators, reference
from tiefsee.spec import model_spec

FILLER, NEEDLE, QUERY, ANSWER = range(4)
WIDTH = 16  # hidden size and vocabulary
GAIN = WIDTH**0.5  # of a one-hot state in RMSNorm
ROPE = 4  # channels: two pairs, of which the second turns slowly
NEEDLE_AT = 3072  # the first position of a window of 4, of 128, and of a block
_COMMON = {
    "vocab_size": WIDTH, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "q_lora_rank": 8,
    "qk_rope_head_dim": ROPE, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 4,
    "max_position_embeddings": 8192, "num_nextn_predict_layers": 0, "dtype": "float32", "eos_token_id": 1,
    "index_n_heads": 2, "index_head_dim": 8, "index_topk": 8,
}  # fmt: skip


def blank(config: dict, device: str) -> Network:
    """A network in which each block adds nothing: every matrix 0, norms 1, embedding and head one-hot."""
    network = Network(model_spec(config), Operators()).requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    network.embed.weight.copy_(torch.eye(WIDTH))
    network.head.weight.copy_(torch.eye(WIDTH))
    return network.to(device).eval()


# ------------------------------------------------------------------------------- V2, V3 and V3.2


def latent_network(model_type: str, device: str) -> Network:
    """The needle's key is RoPE channel 2: in pairs (2, 3) it turns 1e-4 a token, in halves (0, 2) by 1."""
    config = {
        **_COMMON, "model_type": model_type, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "v_head_dim": 4,
        "intermediate_size": 4, "first_k_dense_replace": 1, "rope_theta": 1e8,
    }  # fmt: skip
    network = blank(config, device)
    attn = network.layers[0].attn
    attn.wq_a.weight[0, QUERY] = 1.0  # query latent: sqrt(8) in channel 0
    attn.wq_b.weight[4 + 2, 0] = 10.0
    attn.wkv_a.weight[0, NEEDLE] = 1.0
    attn.wkv_a.weight[8 + 2, NEEDLE] = 1.0  # key 4, query 28: a score of 40 against 0 of 3,000 others
    attn.wkv_b.weight[4, 0] = 1.0
    attn.wo.weight[ANSWER, 0] = 10.0
    if model_type == "deepseek_v32":
        add_indexer(attn.indexer)
    return network


def add_indexer(indexer: torch.nn.Module) -> None:
    """Key in RoPE channel 1: slow in halves (1, 3), fast in pairs (0, 1). Fillers lie in channel 5, unturned.

    LayerNorm makes 2.65 of the one channel that is set and -0.38 of the others; weight and bias leave
    channels 1 and 5 with 3.02 or 0. A needle scores 2 * cos, a filler 1, and eight of 3,000 are picked.
    """
    indexer.wk.weight[1, NEEDLE] = indexer.wk.weight[5, FILLER] = indexer.wk.weight[5, QUERY] = 1.0
    indexer.k_norm.weight[[0, 2, 3, 4, 6, 7]] = 0.0
    indexer.k_norm.bias[[1, 5]] = 7**-0.5
    for head in range(2):
        indexer.wq_b.weight[head * 8 + 1, 0] = 2.0
        indexer.wq_b.weight[head * 8 + 5, 0] = 1.0
    indexer.weights_proj.weight[:, QUERY] = 1.0


# --------------------------------------------------------------------------------------------- V4


def compressed_network(layer_type: str, device: str) -> Network:
    """The needle's entry is channel 6 of 8, in the slow pair (6, 7) of (4, 5), (6, 7); halves are (4, 6), (5, 7).

    The slow pair makes half a turn until NEEDLE_AT. Keys are values, so a value comes out turned by half
    a turn and has to be turned back by the query's angle before channel 6 is read.
    """
    config = {
        **_COMMON, "model_type": "deepseek_v4", "head_dim": 8, "o_groups": 1, "o_lora_rank": 4, "hc_mult": 1,
        "sliding_window": 16, "layer_types": [layer_type], "mlp_layer_types": ["moe"],
        "compress_rope_theta": (NEEDLE_AT / math.pi) ** 2, "rope_theta": 1e4,
    }  # fmt: skip
    network = blank(config, device)
    layer, attn = network.layers[0], network.layers[0].attn
    for hyper in (layer.hc_attn_base, layer.hc_ffn_base, network.hc_head_base):
        hyper[0] = 20.0  # the one stream goes in whole; with 0 it comes out once
    attn.wq_a.weight[0, QUERY] = 1.0
    attn.wq_b.weight[6, 0] = 1.0
    attn.wkv.weight[1, :3] = 1.0  # the window: nothing to find
    add_entries(attn.compressor)
    attn.compressor.norm.weight.fill_(8.0)  # a score of 22 * cos(1) against 0
    attn.wo_a.weight[0, 6] = 1.0
    attn.wo_b.weight[ANSWER, 0] = 10.0
    if layer_type == SPARSE:
        add_entries(attn.indexer.compressor)
        for head in range(2):
            attn.indexer.wq_b.weight[head * 8 + 6, 0] = 1.0
            attn.indexer.wq_b.weight[head * 8 + 1, 0] = 0.3  # fillers score 0.3, the needle cos(1) = 0.54
        attn.indexer.weights_proj.weight[:, QUERY] = 1.0
    return network


def add_entries(compressor: torch.nn.Module) -> None:
    """An entry is its needle if its own window has one (the last 8 rows), else a filler in channel 1."""
    own = len(compressor.wkv.weight) - 8
    compressor.wkv.weight[own + 6, NEEDLE] = 1.0
    compressor.wkv.weight[own + 1, [FILLER, QUERY]] = 1.0
    compressor.wgate.weight[own:, NEEDLE] = 10.0
    compressor.wgate.weight[:own] = -10.0 / GAIN  # the window before counts for nothing


# ------------------------------------------------------------------------------------------ tests

BUILDERS = {
    "v2": lambda device: latent_network("deepseek_v2", device),
    "v3": lambda device: latent_network("deepseek_v3", device),
    "v3.2": lambda device: latent_network("deepseek_v32", device),
    "v4-sparse": lambda device: compressed_network(SPARSE, device),
    "v4-heavy": lambda device: compressed_network(HEAVY, device),
}


def found(family: str, network: Network) -> bool:
    """Does the query find the needle: 3,000 tokens away, in V4 1,000 (a third of a turn of the slow pair)?"""
    first, about = (NEEDLE_AT, 1000) if family.startswith("v4") else (100, 3000)
    distance = min(range(about - 20, about + 20), key=math.cos)  # where the fast pair points away
    prompt = [FILLER] * first + [NEEDLE] + [FILLER] * (distance - 1) + [QUERY]
    llm = tiny_llm(network, max_context=8192)
    answer = llm.generate(prompt, Sampling(temperature=0, max_tokens=1, ignore_eos=True))
    return answer.token_ids == (ANSWER,)


def turn_back_nothing(ops: Operators) -> None:
    """Leave out the rotation that follows V4's attention."""
    pending = []

    def window_attention(*args, **options):
        pending.append(True)
        return reference.window_attention(*args, **options)

    def rotate_pairs(x, cos, sin):
        return x if pending and pending.pop() else reference.rotate_pairs(x, cos, sin)

    ops.window_attention, ops.rotate_pairs = window_attention, rotate_pairs


def halves_for_pairs(ops: Operators) -> None:
    ops.rotate_pairs = reference.rotate_halves


def pairs_for_halves(ops: Operators) -> None:
    ops.rotate_halves = reference.rotate_pairs


@pytest.mark.parametrize("family", BUILDERS)
def test_the_needle_is_found(family, device):
    assert found(family, BUILDERS[family](device))


@pytest.mark.parametrize(
    ("family", "mistake"),
    [
        *((family, halves_for_pairs) for family in BUILDERS),
        ("v3.2", pairs_for_halves),
        *((family, turn_back_nothing) for family in ("v4-sparse", "v4-heavy")),
    ],
)
def test_a_wrong_layout_misses_it(family, mistake, device):
    network = BUILDERS[family](device)
    mistake(network.ops)
    assert not found(family, network)
