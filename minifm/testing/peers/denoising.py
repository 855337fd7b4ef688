"""Networks that undo noise in PyTorch: the UNet of diffusers, and DiT both as diffusers has it and
written out here, with what makes it faster: one product for q, k and v, one embedding of time and
label for all blocks.

All read what minifm has written (testing/denoisers.py): the weights, and what to compute first.
What follows from these is returned beside the calls, for the comparison.

    eager, compile              and with weights and images laid out channels last:
    channels_last, channels_last+compile
    diffusers                   DiT as diffusers has it
    bf16, bf16+compile          autocast
    pure-bf16                   weights, moments and activations in bf16
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

FREQUENCIES = 256
DECAY = 0.995           # of the moving average of the weights


class Denoiser:
    """A network, the numbers that it is shown, and the mode in which it computes."""

    def __init__(self, folder, mode):
        self.given, self.mode = load_file(Path(folder) / "shared.safetensors"), mode
        self.network = network(folder, mode, self.given)
        self.type = torch.float32
        if mode.startswith("pure-bf16"):
            self.type, self.network = torch.bfloat16, self.network.bfloat16()
        if mode.startswith("channels_last"):
            self.network = self.network.to(memory_format=torch.channels_last)
        if "compile" in mode:
            self.predict, self.loss = torch.compile(self.predict), torch.compile(self.loss)

    def precision(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.mode.startswith("bf16"))

    def predict(self, x, times, labels):
        if self.mode.startswith("channels_last"):
            x = x.contiguous(memory_format=torch.channels_last)
        found = self.network(x.to(self.type), times, class_labels=labels)
        return found if isinstance(found, torch.Tensor) else found.sample

    def loss(self, x0, noise, times, labels):
        """The squared error of v, as minifm's NoiseObjective has it by default."""
        alpha, sigma = (self.given[name][times][:, None, None, None]
                        for name in ("alpha", "sigma"))
        found = self.predict(alpha * x0 + sigma * noise, times, labels)
        return F.mse_loss(found.float(), alpha * noise - sigma * x0)

    def batch(self):
        """(x0, noise, times, labels) as minifm has written them."""
        return (*(self.given[name] for name in ("x0", "noise", "times")), self.given.get("labels"))


def denoising_call(folder, mode, precision):
    """Calls without gradients, and the first one's outcome. `precision` is minifm's; a mode says
    what is computed here."""
    made = Denoiser(folder, mode)
    _, noise, times, labels = made.batch()

    def call():
        with torch.inference_mode(), made.precision():
            return made.predict(noise, times, labels)

    def calls():
        while True:
            call()
            yield

    return calls(), {"prediction": call().float().flatten().tolist()}


def denoising_step(folder, mode, precision, trained=False):
    """Training steps, and the first one's outcome. `trained`: with examples, times and noise drawn,
    and a moving average of the weights, as whoever trains has them."""
    made = Denoiser(folder, mode)
    weights = list(made.network.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    average = [w.detach().clone() for w in weights] if trained else []
    x0, _, _, labels = batch = made.batch()
    pictures = torch.randint(0, 256, (256, *x0.shape[1:]), dtype=torch.uint8)

    def drawn():
        chosen = torch.randint(len(pictures), x0.shape[:1])
        times = torch.randint(len(made.given["alpha"]), x0.shape[:1])
        return pictures[chosen] / 127.5 - 1, torch.randn_like(x0), times, labels

    def forward_backward(batch):
        optimizer.zero_grad(set_to_none=True)
        with made.precision():
            loss = made.loss(*batch)
        loss.backward()
        return loss, nn.utils.clip_grad_norm_(weights, 1.0)

    def calls():
        while True:
            loss, _ = forward_backward(drawn() if trained else batch)
            optimizer.step()
            if trained:
                torch._foreach_lerp_(average, weights, 1 - DECAY)
            loss.item()
            yield

    loss, norm = forward_backward(batch)
    return calls(), {"loss": loss.item(), "gradient_norm": norm.item()}


def network(folder, mode, given):
    """The network of a folder in the layout of the ecosystem."""
    config = json.loads((Path(folder) / "config.json").read_text())
    if "positions" in given and mode != "diffusers":
        return DiT(config, given["positions"], load_file(
            Path(folder) / "diffusion_pytorch_model.safetensors"))
    import diffusers
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder)


# -- DiT (Peebles & Xie 2022) ----------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, C, H, epsilon):
        super().__init__()
        self.heads, self.epsilon = H, epsilon
        self.modulate, self.qkv, self.output = nn.Linear(C, 6 * C), nn.Linear(C, 3 * C), \
            nn.Linear(C, C)
        self.expand, self.contract = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x, condition):
        B, T, C = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = \
            self.modulate(condition)[:, None].chunk(6, dim=-1)
        y = self.qkv(F.layer_norm(x, (C,), eps=1e-6) * (1 + scale1) + shift1)
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in y.chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, C)
        x = x + gate1 * self.output(y)
        y = F.layer_norm(x, (C,), eps=self.epsilon) * (1 + scale2) + shift2
        return x + gate2 * self.contract(F.gelu(self.expand(y), approximate="tanh"))


class DiT(nn.Module):
    def __init__(self, config, positions, stored):
        """`stored`: its weights, by the names in files."""
        super().__init__()
        H, self.patch = config["num_attention_heads"], config["patch_size"]
        C, volume = H * config["attention_head_dim"], self.patch**2
        self.outputs = config["out_channels"]
        self.enter = nn.Linear(config["in_channels"] * volume, C)
        self.time1, self.time2 = nn.Linear(FREQUENCIES, C), nn.Linear(C, C)
        self.labels = nn.Embedding(config["num_embeds_ada_norm"] + 1, C)
        self.blocks = nn.ModuleList([Block(C, H, config["norm_eps"])
                                     for _ in range(config["num_layers"])])
        self.modulate, self.leave = nn.Linear(C, 2 * C), nn.Linear(C, volume * self.outputs)
        self.register_buffer("positions", positions)
        self.load_state_dict(renamed(stored, len(self.blocks)) | {"positions": positions})

    def forward(self, x, times, class_labels):
        B, _, S, _ = x.shape
        side = S // self.patch
        steps = torch.arange(FREQUENCIES // 2, dtype=torch.float32) / (FREQUENCIES // 2 - 1)
        angles = times[:, None].float() * torch.exp(-math.log(10000) * steps)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(x.dtype)
        condition = self.time2(F.silu(self.time1(waves))) + self.labels(class_labels)
        condition = F.silu(condition)
        x = x.view(B, -1, side, self.patch, side, self.patch).permute(0, 2, 4, 1, 3, 5)
        x = self.enter(x.reshape(B, side * side, -1)) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulate(condition)[:, None].chunk(2, dim=-1)
        x = self.leave(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        x = x.view(B, side, side, self.patch, self.patch, self.outputs)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(B, self.outputs, S, S)


def renamed(stored, layers):
    """Weights by the names in files as weights by the names above."""
    embedder = "transformer_blocks.0.norm1.emb"
    names = {"enter": "pos_embed.proj", "time1": f"{embedder}.timestep_embedder.linear_1",
             "time2": f"{embedder}.timestep_embedder.linear_2",
             "labels": f"{embedder}.class_embedder.embedding_table", "modulate": "proj_out_1",
             "leave": "proj_out_2"}
    for i in range(layers):
        here, there = f"blocks.{i}", f"transformer_blocks.{i}"
        names |= {f"{here}.modulate": f"{there}.norm1.linear",
                  f"{here}.output": f"{there}.attn1.to_out.0",
                  f"{here}.expand": f"{there}.ff.net.0.proj",
                  f"{here}.contract": f"{there}.ff.net.2"}
    found = {f"{ours}.{kind}": stored[f"{theirs}.{kind}"] for ours, theirs in names.items()
             for kind in ("weight", "bias") if f"{theirs}.{kind}" in stored}
    for i in range(layers):
        for kind in ("weight", "bias"):
            found[f"blocks.{i}.qkv.{kind}"] = torch.cat([
                stored[f"transformer_blocks.{i}.attn1.to_{part}.{kind}"] for part in "qkv"])
    found["enter.weight"] = found["enter.weight"].flatten(1)
    return found
