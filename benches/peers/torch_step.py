#!/usr/bin/env python3
"""Training tokens per second of `moe`, beside eager PyTorch on the same CPU, in turns.

Both train the same model on random tokens: two layers of pre-norm attention (rotary positions) and a mixture of experts
(softmax, top-k, renormalised, Switch loss 0.01), AdamW, clipping. PyTorch's experts are the usual block: a loop over
experts that gathers each one's tokens, and index_add. Needs python3-torch (Debian) and a build of moe:

  python3 benches/peers/torch_step.py [--moe build/release/bin/moe] [--shape 4096,512,256,64,8] [--rounds 5]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("torch_step.py: this Python has no torch; on Debian: apt install python3-torch, then /usr/bin/python3")

LAYERS, VOCAB, CONTEXT, HEAD = 2, 1024, 1024, 64  # as moe/planner/bench_step.cc has them


class Norm(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Experts(torch.nn.Module):
    def __init__(self, width, hidden, count, top_k):
        super().__init__()
        self.top_k, self.count = top_k, count
        self.router = torch.nn.Linear(width, count, bias=False)
        self.gate_up = torch.nn.ModuleList(torch.nn.Linear(width, 2 * hidden, bias=False) for _ in range(count))
        self.down = torch.nn.ModuleList(torch.nn.Linear(hidden, width, bias=False) for _ in range(count))

    def forward(self, x):
        probs = F.softmax(self.router(x).float(), dim=-1)
        gates, chosen = probs.topk(self.top_k, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for e in range(self.count):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            if token.numel() == 0:
                continue
            gate, up = self.gate_up[e](x[token]).chunk(2, dim=-1)
            out = self.down[e](F.silu(gate) * up)
            y.index_add_(0, token, (out * gates[token, slot].unsqueeze(-1)).to(y.dtype))
        share = torch.bincount(chosen.flatten(), minlength=self.count).float() / chosen.numel()
        return y, 0.01 * self.count * (share * probs.mean(0)).sum()


class Layer(torch.nn.Module):
    def __init__(self, width, hidden, count, top_k):
        super().__init__()
        self.heads = width // HEAD
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width, bias=False), torch.nn.Linear(width, width, bias=False)
        self.experts = Experts(width, hidden, count, top_k)
        angles = torch.outer(torch.arange(CONTEXT).float(), 10000 ** (-torch.arange(0, HEAD, 2).float() / HEAD))
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1)), self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1))

    def rotate(self, x):
        low, high = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-high, low], -1) * self.sin

    def forward(self, x):  # [B,C,D]
        B, C, D = x.shape
        q, k, v = (t.view(B, C, self.heads, HEAD).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        q, k = self.rotate(q).to(v.dtype), self.rotate(k).to(v.dtype)
        scores = q @ k.transpose(-1, -2) / HEAD**0.5 + self.mask
        attended = (F.softmax(scores.float(), dim=-1).to(v.dtype) @ v).transpose(1, 2).reshape(B, C, D)
        x = x + self.out(attended)
        y, aux = self.experts(self.norm2(x).view(B * C, D))
        return x + y.view(B, C, D), aux


class Model(torch.nn.Module):
    def __init__(self, width, hidden, count, top_k):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCAB, width)
        self.layers = torch.nn.ModuleList(Layer(width, hidden, count, top_k) for _ in range(LAYERS))
        self.norm = Norm(width)

    def forward(self, ids, targets):
        x, loss = self.embedding(ids), 0.0
        for layer in self.layers:
            x, aux = layer(x)
            loss = loss + aux
        logits = F.linear(self.norm(x), self.embedding.weight)
        return loss + F.cross_entropy(logits.view(-1, VOCAB).float(), targets.reshape(-1))


def torch_steps(tokens, width, hidden, count, top_k, bf16):
    torch.manual_seed(1)
    model = Model(width, hidden, count, top_k)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1)

    def step():
        ids = torch.randint(VOCAB, (tokens // CONTEXT, CONTEXT + 1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_tokens_per_s(moe, shape, dtype, threads, seconds):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.write("moe %d %d %d %d %d\n" % tuple(shape))
        f.flush()
        out = subprocess.run([moe, "bench", "moe", "--shapes", f.name, "--filter", "step/", "--dtype", dtype, "--threads",
                              str(threads), "--seconds", str(seconds), "--json", "-"], check=True, capture_output=True)
    (case,) = json.loads(out.stdout)["cases"]
    return shape[0] / case["run_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moe", default="build/release/bin/moe", help="the moe program (default %(default)s)")
    parser.add_argument("--shape", default="4096,512,256,64,8", help="T,D,F,E,k (default %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    shape = [int(x) for x in args.shape.split(",")]
    if len(shape) != 5 or min(shape) < 1 or shape[0] % CONTEXT or shape[1] % HEAD:
        sys.exit("--shape: got %s, expected T,D,F,E,k with T a multiple of %d and D of %d" % (args.shape, CONTEXT, HEAD))
    torch.set_num_threads(args.threads)
    rates = {"torch f32": [], "torch bf16": [], "moe f32": [], "moe bf16": []}
    steps = {"torch " + name: torch_steps(*shape, bf16=name == "bf16") for name in ("f32", "bf16")}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            begin = time.monotonic()
            step()
            rates[name].append(shape[0] / (time.monotonic() - begin))
        for dtype in ("f32", "bf16"):
            rates["moe " + dtype].append(our_tokens_per_s(args.moe, shape, dtype, args.threads, 1))
    print("torch %s, %d threads, T,D,F,E,k = %s, %d rounds: training tokens/s, median (least to most)" %
          (torch.__version__, args.threads, args.shape, args.rounds))
    for name, values in rates.items():
        print("  %-10s %8.0f (%.0f to %.0f)" % (name, statistics.median(values), min(values), max(values)))
    best = [max(a, b) for a, b in zip(rates["torch f32"], rates["torch bf16"])]
    for name, ours, theirs in (("f32 / f32", rates["moe f32"], rates["torch f32"]), ("bf16 / torch's best", rates["moe bf16"], best)):
        ratios = [a / b for a, b in zip(ours, theirs)]
        print("  %-20s %.2f (%.2f to %.2f)" % (name, statistics.median(ratios), min(ratios), max(ratios)))


if __name__ == "__main__":
    main()
