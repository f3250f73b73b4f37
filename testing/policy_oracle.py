#!/usr/bin/python3
"""What the routers of public families and trainers choose and drop, in PyTorch and double: an oracle that shares nothing with the product but the logits.

  policy_oracle.py LOGITS.safetensors OUT.json

The file has `logits` [tokens,experts] and `bias` [experts]. OUT is a list of {"policy", "bias", "eval", "top_k", "expert", "gate", "kept"}:
what `moe route` is asked, with the bias or without, and the answer, slot by slot, best first; the gate of a dropped slot is 0. Formulas: of the papers named below.
Exit code 77: no torch here.
"""
import json
import math
import struct
import sys

try:
    import torch
except ImportError as e:
    print(f"no torch: {e}", file=sys.stderr)
    sys.exit(77)


def read(path):
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        data = bytearray(f.read())
    out = {}
    for name in ("logits", "bias"):
        begin, end = header[name]["data_offsets"]
        out[name] = torch.frombuffer(data[begin:end], dtype=torch.float32).reshape(header[name]["shape"]).double()
    return out["logits"], out["bias"]


def best(values, k):
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def softmax_first(z, k, normalize, scale=1.0):
    """Mixtral (arXiv 2401.04088, normalised), OLMoE (2409.02060), Qwen (norm_topk_prob)."""
    p = z.softmax(-1)
    chosen = best(p, k)
    gate = p.gather(1, chosen)
    if normalize:
        gate = gate / gate.sum(-1, keepdim=True)
    return chosen, scale * gate


def softmax_last(z, k):
    """gpt-oss, Granite, Megatron's default: a softmax over the chosen logits."""
    chosen = best(z, k)
    return chosen, z.gather(1, chosen).softmax(-1)


def only_groups(values, group_scores, top_groups):
    """Values of other than the best groups become 0, as transformers' DeepSeek has it."""
    tokens, groups = group_scores.shape
    allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, best(group_scores, top_groups), True)
    return torch.where(allowed.repeat_interleave(values.shape[1] // groups, 1), values, 0.0)


def deepseek_v2(z, k=6, groups=8, top_groups=3, scale=16.0):
    """Group-limited greedy (arXiv 2405.04434, 2.2.2): a group is as good as its best expert; no renormalisation."""
    p = z.softmax(-1)
    masked = only_groups(p, p.view(len(p), groups, -1).amax(-1), top_groups)
    chosen = best(masked, k)
    return chosen, scale * masked.gather(1, chosen)


def no_aux_loss(z, bias, k, groups, top_groups, scale):
    """DeepSeek-V3 (arXiv 2412.19437, eqs. 12 to 16), GLM-4.5: the bias selects only; a group is the sum of its best two."""
    s = z.sigmoid()
    biased = s + bias
    if groups > 1:
        in_groups = biased.view(len(s), groups, -1).sort(-1, descending=True).values
        biased = only_groups(biased, in_groups[..., :2].sum(-1), top_groups)
    chosen = best(biased, k)
    assert (biased.gather(1, chosen) != 0).all(), "a masked expert was chosen: which one of them, nobody says"
    gate = s.gather(1, chosen)
    return chosen, scale * gate / (gate.sum(-1, keepdim=True) + 1e-20)


def sparsemixer(z, jitter=0.01):
    """Phi-3.5-MoE in evaluation (Liu et al., arXiv 2310.00811; the release's modeling code for the thresholds)."""
    chosen, gates, left = [], [], z.clone()
    for _ in range(2):
        top = left.amax(-1, keepdim=True)
        far = (top - z) / torch.maximum(z.abs(), top) > 2 * jitter
        pick = best(left, 1)
        gates.append(left.masked_fill(far, -torch.inf).softmax(-1).gather(1, pick))
        chosen.append(pick)
        left = left.scatter(1, pick, -torch.inf)
    return torch.cat(chosen, 1), torch.cat(gates, 1)


def sinkhorn(z, k, tolerance=1e-4):
    """Megatron-LM in training: exp(z) with rows that sum to 1/T and columns to 1/E, until the columns do, too."""
    tokens, experts = z.shape
    cost, column = z.exp(), torch.ones(experts, dtype=z.dtype)
    change = torch.inf
    while change > tolerance:
        row = 1 / (tokens * (cost * column).sum(1))
        before, column = column, 1 / (experts * (cost * row[:, None]).sum(0))
        change = (1 - before / column).abs().mean().item()
    chosen = best(cost * column * row[:, None], k)
    scores = z.sigmoid() if k == 1 else z.softmax(-1)
    return chosen, scores.gather(1, chosen)


def llama_4(z):
    """Llama 4: the largest logit; its sigmoid multiplies the expert's input."""
    chosen = best(z, 1)
    return chosen, z.gather(1, chosen).sigmoid()


def within(capacity, chosen, order):
    """Which slots [tokens,k] keep a place: every expert has `capacity` of them, given out in that order."""
    kept, load = torch.zeros_like(chosen, dtype=torch.bool), {}
    for token, choice in order:
        expert = chosen[token, choice].item()
        load[expert] = load.get(expert, 0) + 1
        kept[token, choice] = load[expert] <= capacity
    return kept


def by_position(chosen):
    return [(t, j) for t in range(len(chosen)) for j in range(chosen.shape[1])]


def first_choices_first(chosen):
    return [(t, j) for j in range(chosen.shape[1]) for t in range(len(chosen))]


def by_gate(chosen, gate):
    return sorted(by_position(chosen), key=lambda slot: -gate[slot].item())  # stable: equal ones by position


def mesh_tensorflow(z, k, factor):
    """Switch (k 1) and GShard (k 2) as Mesh-TensorFlow has them: capacity int(tokens * factor / experts), 4 at least; gates of two are
    divided by their sum before anything is dropped; first choices have their places first."""
    tokens, experts = z.shape
    chosen, gate = softmax_first(z, k, normalize=False)
    if k > 1:
        gate = gate / (gate.sum(-1, keepdim=True) + 1e-9)
    return chosen, gate, within(max(min(tokens, int(tokens * factor / experts)), 4), chosen, first_choices_first(chosen))


def megablocks(z, k):
    """MegaBlocks' dropping layer: int(k * tokens / experts) rows in the order of tokens; no renormalisation."""
    chosen, gate = softmax_first(z, k, normalize=False)
    capacity = int(k * len(z) / z.shape[1])
    return chosen, gate, within(capacity if capacity > 0 else len(z), chosen, by_position(chosen))


def deepspeed(z, k, order):
    """DeepSpeed: ceil(tokens / experts * k) rows, 4 at least; with k > 1 the gates that are left are divided by their sum."""
    chosen, gate = softmax_first(z, k, normalize=False)
    kept = within(max(math.ceil(len(z) / z.shape[1] * k), 4), chosen, order(chosen, gate))
    if k > 1:
        left = gate * kept
        gate = left / left.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).eps)
    return chosen, gate, kept


def megatron_capacity(z, k):
    """Megatron with a capacity factor of 1: ceil(tokens * k / experts) rows for the largest gates; no renormalisation."""
    chosen, gate = softmax_last(z, k)
    return chosen, gate, within(math.ceil(len(z) * k / z.shape[1]), chosen, by_gate(chosen, gate))


def cases(z, bias):
    """policy, with the bias?, in evaluation?, (experts, gates) or (experts, gates, kept)"""
    yield "as-switch", False, False, mesh_tensorflow(z, 1, 1.25)
    yield "as-switch", False, True, mesh_tensorflow(z, 1, 2)
    yield "as-gshard", False, False, mesh_tensorflow(z, 2, 1.25)
    yield "as-gshard", False, True, mesh_tensorflow(z, 2, 2)
    yield "as-megablocks", False, False, megablocks(z, 1)
    yield "as-megablocks,top_k=2", False, True, megablocks(z, 2)
    # By default chance drops; what is left is the capacity.
    yield "as-deepspeed,drop=position", False, False, deepspeed(z, 1, lambda chosen, gate: by_position(chosen))
    # Training draws the second expert, evaluation does not.
    yield "as-deepspeed-top2", False, True, deepspeed(z, 2, lambda chosen, gate: first_choices_first(chosen))
    yield "as-deepspeed-topk", False, False, deepspeed(z, 4, by_gate)
    yield "as-deepspeed-topk,top_k=3", False, True, deepspeed(z, 3, by_gate)
    yield "as-megatron-capacity", False, False, megatron_capacity(z, 2)
    yield "mixtral", False, False, softmax_first(z, 2, True)
    yield "olmoe", False, False, softmax_first(z, 8, False)
    yield "qwen2-moe", False, False, softmax_first(z, 4, False)
    yield "qwen3-moe", False, False, softmax_first(z, 8, True)
    yield "deepseek-v2", False, False, deepseek_v2(z)
    yield "deepseek-v3", True, False, no_aux_loss(z, bias, 8, 8, 4, 2.5)
    yield "glm-4.5", True, False, no_aux_loss(z, bias, 8, 1, 1, 2.5)
    yield "gpt-oss", True, False, softmax_last(z + bias, 4)
    yield "granite-moe", False, False, softmax_last(z, 8)
    yield "as-megatron", False, False, softmax_last(z, 2)
    yield "phi-3.5-moe", False, True, sparsemixer(z)
    yield "llama-4", False, False, llama_4(z)
    one, two = "selection=sinkhorn,top_k=1,normalize=false,score=sigmoid", "selection=sinkhorn,top_k=2,normalize=false"
    yield one, False, False, sinkhorn(z, 1)
    yield two, False, False, sinkhorn(z, 2)
    yield two, False, True, softmax_first(z, 2, False)  # evaluation balances nothing


def main():
    out = []
    for policy, has_bias, evaluation, (expert, gate, *dropping) in cases(*read(sys.argv[1])):
        kept = dropping[0] if dropping else torch.ones_like(expert, dtype=torch.bool)
        out.append({"policy": policy, "bias": has_bias, "eval": evaluation, "top_k": expert.shape[1],
                    "expert": expert.flatten().tolist(), "gate": (gate * kept).flatten().tolist(), "kept": kept.flatten().tolist()})
    with open(sys.argv[2], "w") as f:
        json.dump(out, f)


main()
