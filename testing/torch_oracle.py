#!/usr/bin/python3
"""Loss and gradients of a saved model by PyTorch's autograd: an oracle that shares nothing with the product but the files.

  torch_oracle.py MODEL_FOLDER BATCH.json OUT.safetensors [--dtype float64]

Reads config.json and model.safetensors as Hugging Face's transformers would (mixtral, olmoe, qwen3_moe, llama, qwen3, and our
moe_cpp), runs the batch {"sequences": [[ids]], "targets": [[ids or -1]], "grad_scale", "aux_scale"} and writes the gradient of

  grad_scale * sum of cross-entropies + aux_scale * sum over layers (balance coefficient * balance + z coefficient * z)

by every tensor, under the tensor's own name, and "loss_sum" and "aux_sum", [1] each. Dropless. Exit code 77: no torch here.
"""
import json
import math
import struct
import sys

try:
    import torch
    import torch.nn.functional as F
except ImportError as e:
    print(f"no torch: {e}", file=sys.stderr)
    sys.exit(77)

TORCH_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_safetensors(path):
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        data = bytearray(f.read())
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(data[begin:end], dtype=TORCH_TYPES[entry["dtype"]])
        out[name] = flat.reshape(entry["shape"])
    return out


def write_safetensors(path, tensors):
    """tensors: name -> double tensor; written as F32, which the test reads."""
    header, at, blobs = {}, 0, []
    for name, tensor in tensors.items():
        values = tensor.detach().to(torch.float32).contiguous().flatten().tolist()
        blob = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for blob in blobs:
            f.write(blob)


class Layer:
    """What layer `l` is, whatever the family calls it."""

    def __init__(self, config, l):
        kind = config["model_type"]
        self.shared = self.shared_gate = False
        self.kinds = []  # of experts that differ: kind or activation, plain, deep
        self.topk_softmax = False
        ours = config.get("moe_cpp") or {}
        self.z_loss, self.gate, self.gates_input = ours.get("z_loss", 0.0), "linear", False
        self.balance_loss = config.get("router_aux_loss_coef", 0.0)
        self.top_k = config.get("num_experts_per_tok", 0)
        self.normalize = config.get("norm_topk_prob", False)
        self.block, self.names = "mlp.", ("gate_proj", "up_proj", "down_proj")
        if kind == "mixtral":
            self.moe, self.experts, self.normalize = True, config["num_local_experts"], True
            self.block, self.names = "block_sparse_moe.", ("w1", "w3", "w2")
        elif kind == "olmoe":
            self.moe, self.experts = True, config["num_experts"]
        elif kind == "qwen3_moe":
            dense = l in (config.get("mlp_only_layers") or []) or (l + 1) % config.get("decoder_sparse_step", 1) != 0
            self.moe, self.experts = not dense, config["num_experts"]
        elif kind in ("llama", "qwen3"):
            self.moe = False
        elif kind == "moe_cpp":
            spec = config["layers"][l]
            self.moe = spec["ffn"] == "moe"
            if self.moe:
                self.experts, self.top_k = spec["num_experts"], spec["num_experts_per_tok"]
                router = spec["router"]  # what differs from a normalized softmax without losses
                assert router.keys() <= {"score", "normalize", "balance_loss", "z_loss", "capacity_factor", "gate", "gate_width",
                                          "gates_input"}, router
                self.normalize = router.get("normalize", True)
                self.topk_softmax = router.get("score", "softmax") == "topk_softmax"
                self.balance_loss, self.z_loss = router.get("balance_loss", 0.0), router.get("z_loss", 0.0)
                self.gate, self.gates_input = router.get("gate", "linear"), router.get("gates_input", False)
                self.shared, self.shared_gate = spec["n_shared_experts"] > 0, spec.get("shared_expert_gate", False)
                for entry in spec.get("expert_groups", []):  # "2 relu2 32 plain deep", "1 zero"
                    count, kind, *rest = entry.split()
                    self.kinds += [(kind, "plain" in rest, "deep" in rest)] * int(count)
        else:
            raise SystemExit(f"unknown model_type {kind}")


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, theta):
    """x [heads, tokens, width]; halves are the pairs."""
    width = x.shape[-1]
    frequency = theta ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequency
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    half = torch.cat([-x[..., width // 2:], x[..., : width // 2]], -1)
    return x * cos + half * sin


def attention(w, prefix, config, x, qk_norm):
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    q, k, v = (F.linear(x, w[f"{prefix}{n}_proj.weight"]) for n in "qkv")
    if qk_norm == "whole":
        q, k = rms_norm(q, w[prefix + "q_norm.weight"], eps), rms_norm(k, w[prefix + "k_norm.weight"], eps)
    tokens = x.shape[0]
    q = q.view(tokens, heads, width).transpose(0, 1)
    k = k.view(tokens, kv_heads, width).transpose(0, 1)
    v = v.view(tokens, kv_heads, width).transpose(0, 1)
    if qk_norm == "per_head":
        q, k = rms_norm(q, w[prefix + "q_norm.weight"], eps), rms_norm(k, w[prefix + "k_norm.weight"], eps)
    q, k = rotate(q, theta), rotate(k, theta)
    k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(width)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    out = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    return F.linear(out.transpose(0, 1).reshape(tokens, heads * width), w[prefix + "o_proj.weight"])


def swiglu(w, prefix, names, x):
    gate, up, down = (w[f"{prefix}{n}.weight"] for n in names)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
               "relu2": lambda x: F.relu(x).square()}


def expert(w, prefix, layer, e, x):
    """What expert e makes of the rows x."""
    if not layer.kinds:
        return swiglu(w, prefix, layer.names, x)
    kind, plain, deep = layer.kinds[e]
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "copy":
        return x
    if kind == "constant":
        share = F.linear(x, w[prefix + "mix.weight"]).softmax(-1)
        return share[:, :1] * x + share[:, 1:] * w[prefix + "constant"]
    act = ACTIVATIONS[kind]
    for middle in ["", "middle_"] if deep else [""]:
        up = F.linear(x, w[f"{prefix}{middle}up_proj.weight"])
        x = act(up) if plain else act(F.linear(x, w[f"{prefix}{middle}gate_proj.weight"])) * up
    return F.linear(x, w[prefix + "down_proj.weight"])


def gate_logits(w, prefix, kind, x):
    if kind == "mlp":
        x = F.silu(F.linear(x, w[prefix + "hidden.weight"]))
    if kind != "cosine":
        return F.linear(x, w[prefix + "weight"])
    scale = w[prefix + "log_scale"].clamp(max=math.log(100)).exp()
    return scale * F.linear(F.normalize(F.linear(x, w[prefix + "hidden.weight"])), F.normalize(w[prefix + "weight"]))


def moe(w, prefix, layer, x):
    """y, and the layer's losses with their coefficients. x: the rows of all sequences."""
    logits = gate_logits(w, prefix + "gate.", layer.gate, x)
    probs = logits.softmax(-1)
    chosen = logits.topk(layer.top_k, -1).indices
    if layer.topk_softmax:
        gates = logits.gather(-1, chosen).softmax(-1)
    else:
        gates = probs.gather(-1, chosen)
        if layer.normalize:
            gates = gates / gates.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for e in range(layer.experts):
        token, slot = (chosen == e).nonzero(as_tuple=True)
        if len(token):
            gate = gates[token, slot, None]
            read = x[token] * gate if layer.gates_input else x[token]
            out = expert(w, f"{prefix}experts.{e}.", layer, e, read)
            y = y.index_add(0, token, out if layer.gates_input else out * gate)
    if layer.shared:
        shared = swiglu(w, prefix + "shared_experts.", layer.names, x)
        y = y + (F.linear(x, w[prefix + "shared_expert_gate.weight"]).sigmoid() * shared if layer.shared_gate else shared)
    counts = torch.bincount(chosen.flatten(), minlength=layer.experts).to(x.dtype)
    balance = layer.experts * (counts / counts.sum() * probs.mean(0)).sum()
    z = logits.logsumexp(-1).pow(2).mean()
    return y, layer.balance_loss * balance + layer.z_loss * z


def main():
    folder, batch_path, out_path = sys.argv[1:4]
    config = json.load(open(f"{folder}/config.json"))
    batch = json.load(open(batch_path))
    torch.set_num_threads(1)
    w = {name: t.to(torch.float64).clone().requires_grad_() for name, t in read_safetensors(f"{folder}/model.safetensors").items()}
    kind = config["model_type"]
    qk_norm = {"olmoe": "whole", "qwen3_moe": "per_head", "qwen3": "per_head"}.get(kind, config.get("qk_norm", "none"))
    eps = config["rms_norm_eps"]
    lengths = [len(s) for s in batch["sequences"]]

    x = torch.cat([F.embedding(torch.tensor(s), w["model.embed_tokens.weight"]) for s in batch["sequences"]])
    aux = torch.zeros((), dtype=torch.float64)
    for l in range(config["num_hidden_layers"]):
        layer, prefix = Layer(config, l), f"model.layers.{l}."
        normed = rms_norm(x, w[prefix + "input_layernorm.weight"], eps)
        x = x + torch.cat([attention(w, prefix + "self_attn.", config, s, qk_norm) for s in normed.split(lengths)])
        normed = rms_norm(x, w[prefix + "post_attention_layernorm.weight"], eps)
        if layer.moe:
            y, losses = moe(w, prefix + layer.block, layer, normed)
            aux = aux + losses
        else:
            y = swiglu(w, prefix + layer.block, layer.names, normed)
        x = x + y
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    logits = F.linear(rms_norm(x, w["model.norm.weight"], eps), head)
    targets = torch.tensor(sum(batch["targets"], []))
    loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    (batch["grad_scale"] * loss + batch["aux_scale"] * aux).backward()

    out = {name: t.grad if t.grad is not None else torch.zeros_like(t) for name, t in w.items()}
    out["loss_sum"], out["aux_sum"] = loss.reshape(1), aux.reshape(1)
    write_safetensors(out_path, out)


main()
