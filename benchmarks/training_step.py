"""Images per second of a training step, for every network and for its peers of the same size, in the same run.

    python -m benchmarks.training_step                                      # CPU, float32
    python -m benchmarks.training_step --precision bf16 --compile           # and other ways of computing
    python -m benchmarks.training_step --device cuda --batch 256 --scale 2

A step is forward, backward and a fused AdamW, for all alike. Peers: diffusers' `UNet2DModel` and `DiTTransformer2DModel`,
denoising-diffusion-pytorch's `Unet`; their widths are those whose parameter count is nearest to ours. Networks take turns,
round after round, so that whatever else the machine does meets all of them; each one's figure is its median. `of peak` is the
floating-point work that a step needs (three forward passes) over the time it took, against the largest rate at which this
device was seen to multiply matrices in the same precision. Last, the default picture model is trained for a moment as the
pipeline does it, and the share of that time is told in which the loop waited for examples.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import report
from diffusion_core.nets.cost import count_parameters, flops
from diffusion_core.nets.dit import DiT
from diffusion_core.nets.edm2_unet import EDM2UNet
from diffusion_core.nets.hourglass import Hourglass
from diffusion_core.nets.mmdit import MMDiT
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.rin import RIN
from diffusion_core.nets.unet import UNet
from diffusion_core.nets.uvit import UViT

CATEGORIES = 10
GOAL = 1.2  # goal: ratio to the faster peer
LEAST = 0.9  # of our parameters, that a peer must have to be compared
PEERS = ("diffusers UNet2DModel", "diffusers DiTTransformer2DModel", "denoising-diffusion-pytorch Unet")


class Way(NamedTuple):
    """Precision, device and compilation shared by all."""

    device: torch.device
    precision: str
    compile: bool
    batch: int
    size: int


class Entry(NamedTuple):
    """A network and how it is called on (x, level, category)."""

    name: str
    family: str  # networks of one family are compared
    net: nn.Module
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def ours(net: nn.Module, x: Tensor, c_noise: Tensor, category: Tensor) -> Tensor:
    """Our networks' call, with a one-hot category."""
    return _tensor(net(x, c_noise, {"vec:category": nn.functional.one_hot(category, CATEGORIES).to(x)}))


def with_token(net: nn.Module, x: Tensor, c_noise: Tensor, category: Tensor) -> Tensor:
    """The same with the category as a token of context beside it."""
    one_hot = nn.functional.one_hot(category, CATEGORIES).to(x)
    return _tensor(net(x, c_noise, {"vec:category": one_hot, "tok:category": one_hot[:, None]}))


def entries(way: Way, scale: int) -> list[Entry]:
    """Our networks at about equal cost, and the peers that are installed."""
    size, conds = way.size, {"vec:category": CATEGORIES}
    w, unet = 192 * scale, 64 * scale
    heads = 3 * scale
    made: list[tuple[str, str, nn.Module]] = [
        ("U-Net", "unet", UNet(size, width=unet, depth=2, heads=scale, conds=conds)),
        ("EDM2 U-Net", "", EDM2UNet(size, width=unet, depth=2, heads=scale, conds=conds)),
        ("DiT", "dit", DiT(size, 4, width=w, depth=8, heads=heads, conds=conds)),
        ("patch transformer", "dit", PatchTransformer(size, 4, width=w, depth=8, heads=heads, conds=conds)),
        ("MM-DiT", "", MMDiT(size, 4, width=w, depth=6, heads=heads, conds={**conds, "tok:category": CATEGORIES})),
        ("U-ViT", "", UViT(size, 4, width=w, depth=9, heads=heads, conds=conds)),
        ("RIN", "", RIN(size, 4, width=w, depth=3, heads=heads, conds=conds)),
        ("hourglass", "", Hourglass(size, 2, width=w // 2, depth=6, heads=heads, conds=conds)),
    ]
    out = [Entry(*part, with_token if isinstance(part[2], MMDiT) else ours) for part in made]
    want = {family: count_parameters(net) for name, family, net in made if name in ("U-Net", "DiT")}
    if importlib.util.find_spec("diffusers"):
        out.append(_diffusers_unet(size, want["unet"], unet))
        out.append(_diffusers_dit(size, want["dit"], heads))
    if importlib.util.find_spec("denoising_diffusion_pytorch"):
        out.append(_lucidrains_unet(way, want["unet"], unet))
    return out


def nearest(make: Callable[[int], nn.Module], widths: range, wanted: int) -> nn.Module:
    """The network, among widths, whose parameter count is nearest to the wanted one."""
    with torch.device("meta"):
        counts = {width: count_parameters(make(width)) for width in widths}
    return make(min(counts, key=lambda width: abs(counts[width] - wanted)))


def _diffusers_unet(size: int, wanted: int, head: int) -> Entry:
    from diffusers import UNet2DModel

    levels = sum(size // 2**i >= 8 for i in range(10))
    attended = [size // 2**i <= 16 for i in range(levels)]

    def make(width: int) -> nn.Module:
        net: nn.Module = UNet2DModel(
            sample_size=size,
            block_out_channels=tuple(width * min(i + 1, 4) for i in range(levels)),
            layers_per_block=2,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
            attention_head_dim=width,
            norm_num_groups=8,
            num_class_embeds=CATEGORIES,
        )
        return net

    def call(net: nn.Module, x: Tensor, c_noise: Tensor, category: Tensor) -> Tensor:
        return _tensor(net(x, c_noise, class_labels=category).sample)

    return Entry(PEERS[0], "unet", nearest(make, range(32, 2 * head, head // 8), wanted), call)


def _diffusers_dit(size: int, wanted: int, heads: int) -> Entry:
    from diffusers import DiTTransformer2DModel

    def make(width: int) -> nn.Module:
        net: nn.Module = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=3,
            num_layers=8,
            sample_size=size,
            patch_size=4,
            num_embeds_ada_norm=CATEGORIES,
        )
        return net

    def call(net: nn.Module, x: Tensor, c_noise: Tensor, category: Tensor) -> Tensor:
        return _tensor(net(x, c_noise, class_labels=category).sample)

    widths = range(32 * heads, 96 * heads, 8 * heads)
    return Entry(PEERS[1], "dit", nearest(make, widths, wanted), call)


def _lucidrains_unet(way: Way, wanted: int, head: int) -> Entry:
    from denoising_diffusion_pytorch import Unet

    mults = (1, 2, 4, 8)[: sum(way.size // 2**i >= 8 for i in range(4))]

    flash = way.device.type == "cpu" or way.precision == "bf16"  # its kernel selection supports no other GPU

    def call(net: nn.Module, x: Tensor, c_noise: Tensor, category: Tensor) -> Tensor:
        return _tensor(net(x, c_noise))  # it has no classes

    net = nearest(
        lambda width: Unet(width, dim_mults=mults, flash_attn=flash), range(head // 4, 2 * head, head // 8), wanted
    )
    return Entry(PEERS[2], "unet", net, call)


def peak(way: Way) -> float:
    """FLOP/s of the fastest of some matrix products in the precision at hand."""
    dtype = torch.bfloat16 if way.precision == "bf16" else torch.float32
    best = 0.0
    for n in (512, 1024, 2048) if way.device.type == "cpu" else (2048, 4096, 8192):
        a, b = (torch.randn(n, n, device=way.device).to(dtype) for _ in range(2))

        def product(a: Tensor = a, b: Tensor = b) -> None:
            a @ b
            _wait(way)

        best = max(best, 2 * n**3 / report.best_seconds(product, 10))
    return best


def loader_wait(device: torch.device, steps: int = 20) -> float:
    """The share of the time of some steps of the default picture model in which its trainer waits for examples."""
    from diffusion_core.codecs import Latent
    from diffusion_core.conditioning import rows
    from diffusion_core.training.trainer import TrainConfig, Trainer
    from tasks.common.skeleton import torso_length
    from tasks.config.params import load
    from tasks.models import codec, modality

    params = load(Path(__file__).parents[1] / "params.yaml")
    config = params.pictures
    latents = Latent(codec.untrained(params.codec), torch.zeros([]), torch.ones([]))
    poses = np.random.default_rng(0).normal(size=(512, 33, 3)).astype(np.float32)
    poses /= torso_length(poses)[:, None, None]
    model = modality.build("pictures", config, ["any"], latents, 0.08)
    model.denoiser.to(device)
    x0, cond = torch.randn(512, *model.shape), model.conditions(["any"] * 512, poses)
    trainer = Trainer(
        model.denoiser, model.recipe, TrainConfig(images=10**9, batch=config.batch),
        data=lambda index: (x0[index], rows(cond, index)), n=512,
    )  # fmt: skip
    trainer.step()
    before, start = trainer.data_wait_seconds, time.perf_counter()
    for _ in range(steps):
        trainer.step()
    return (trainer.data_wait_seconds - before) / (time.perf_counter() - start)


def _wait(way: Way) -> None:
    if way.device.type == "cuda":
        torch.cuda.synchronize(way.device)


class Runner:
    """One network's training step, timed."""

    def __init__(self, entry: Entry, way: Way) -> None:
        self.entry, self.way = entry, way
        x, category = torch.zeros(1, 3, way.size, way.size), torch.zeros(1, dtype=torch.int64)
        self.flops = flops(lambda x, c_noise, _: entry.call(entry.net, x, c_noise, category), x, torch.zeros(1))
        self.parameters = count_parameters(entry.net)
        self.net = entry.net.to(way.device)
        self.called: Any = torch.compile(self.net) if way.compile else self.net
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, fused=True)
        self.seconds: list[float] = []
        self.memory = 0

    def step(self) -> None:
        """Forward, backward, optimiser."""
        way = self.way
        x = torch.randn(way.batch, 3, way.size, way.size, device=way.device)
        c_noise = torch.linspace(-1, 1, way.batch, device=way.device)
        category = torch.arange(way.batch, device=way.device) % CATEGORIES
        _wait(way)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast(way.device.type, torch.bfloat16, enabled=way.precision == "bf16"):
            y = self.entry.call(self.called, x, c_noise, category)
        (y.float() - x).square().mean().backward()
        self.optimizer.step()
        _wait(way)
        self.seconds.append(time.perf_counter() - start)

    def round(self, seconds: float) -> None:
        """Run steps for some seconds, at least two; the first is a warm-up."""
        if self.way.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.step()
        self.seconds.pop()
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or not self.seconds:
            self.step()
        if self.way.device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated()

    @property
    def rate(self) -> float:
        """Images a second, from the median step."""
        return self.way.batch / statistics.median(self.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--scale", type=int, default=1, help="times the width")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each network and round")
    parser.add_argument("--only", default="", help="a part of the families' or networks' names")
    given = parser.parse_args()
    way = Way(torch.device(given.device), given.precision, given.compile, given.batch, given.size)
    torch.manual_seed(0)
    if way.precision == "tf32":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    chosen = [e for e in entries(way, given.scale) if given.only in f"{e.family} {e.name}"]
    highest = peak(way)
    lines, figures = measure(chosen, way, given.rounds, given.seconds, highest)
    print(f"{way.device.type}, {way.precision}, compiled: {way.compile}, batch {way.batch}, {way.size} px, "
          f"{torch.get_num_threads()} threads; matrix products {highest / 1e9:.0f} GFLOP/s")  # fmt: skip
    print(report.table([("network", "parameters", "GFLOP", "ms", "images/s", "of peak", "memory"), *lines]))
    goals = {}
    for family, mine in (("unet", "U-Net"), ("dit", "DiT")):
        peers = [e.name for e in chosen if e.family == family and e.name in PEERS]
        near = [n for n in peers if n in figures and figures[n]["parameters"] >= LEAST * figures[mine]["parameters"]]
        if mine in figures and near:
            ratio = figures[mine]["images_per_second"] / max(figures[n]["images_per_second"] for n in near)
            figures[mine]["times_the_faster_peer"] = round(ratio, 3)
            goals[f"{mine} at least {GOAL} times the faster peer"] = ratio >= GOAL
            print(f"{mine}: {ratio:.2f} times the faster of {', '.join(near)}")
    if importlib.util.find_spec("pydantic") and not given.only:
        waited = loader_wait(way.device)
        figures["loader_wait"] = round(waited, 5)
        goals["the loop waits for examples less than 2% of the time"] = waited < 0.02
        print(f"waiting for examples: {waited:.2%} of the time of the default picture model's training")
    about = {**vars(given), "threads": torch.get_num_threads(), "matmul_gflops": round(highest / 1e9, 1)}
    return report.finish("training_step", {"about": about, **figures}, goals)


def measure(
    chosen: list[Entry], way: Way, rounds: int, seconds: float, highest: float
) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """A table row and figures for each network. The networks take turns."""
    runners = [Runner(entry, way) for entry in chosen]
    for _ in range(rounds):
        for runner in runners:
            runner.round(seconds)
            gc.collect()
    lines: list[tuple[str, ...]] = []
    figures: dict[str, Any] = {}
    for runner in runners:
        share = 3 * runner.flops * runner.rate / highest
        memory = f"{runner.memory / 2**30:.2f} GiB" if runner.memory else ""
        ms = 1000 * way.batch / runner.rate
        lines.append((
            runner.entry.name, f"{runner.parameters / 1e6:.2f} M", f"{runner.flops / 1e9:.3f}", f"{ms:.1f}",
            f"{runner.rate:.1f}", f"{share:.1%}", memory,
        ))  # fmt: skip
        figures[runner.entry.name] = {
            "parameters": runner.parameters, "gflop": round(runner.flops / 1e9, 4), "ms": round(ms, 2),
            "images_per_second": round(runner.rate, 2), "of_peak": round(share, 4), "memory_bytes": runner.memory,
        }  # fmt: skip
    return lines, figures


if __name__ == "__main__":
    raise SystemExit(main())
