"""How a model is trained, whatever its network: length, batch, learning rate, devices, checkpoints, when to stop.

Every length is in images seen, so that it means the same at any batch and on any number of ranks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.section import Positive, Section, Seed


class Growth(Section):
    """From so many images seen on, batches of this size."""

    images: Positive
    batch: Positive


class Device(Section):
    """How the network is computed on one kind of device."""

    # Of matrix products; weights and sums are always 32 bits. auto: bf16 where the hardware multiplies it, fp32 elsewhere.
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    compile: bool = False  # through torch.compile


class Stop(Section):
    """Reasons to stop before all images are seen; each needs held-out examples."""

    memorizing: bool = False  # once the losses tell training examples from held-out ones beyond doubt
    converged: bool = False  # once the distance of samples to held-out data falls no further
    patience: Positive = 3  # watches in a row that must agree


class Optimisation(Section):
    """The numbers of a training. The clock is images seen, not steps."""

    images: Positive  # training length, images seen
    batch: Positive  # total over all ranks and accumulation, never per device
    batch_growth: list[Growth] = Field([])  # larger batches later on
    optimiser: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the repeated blocks; AdamW for the rest
    learning_rate: float = Field(gt=0, lt=1)  # of AdamW, at the first batch size
    muon_learning_rate: float = Field(0.005, gt=0, lt=1)  # follows the same schedule
    batch_lr_power: float = Field(0.5, ge=0, le=1)  # learning rate ~ batch to this power: 1 linear, 0.5 square root
    warmup_images: int = Field(ge=0)  # the learning rate grows linearly to its value
    decay_from_images: int = Field(0, ge=0)  # from there on it falls with the inverse square root; 0: never
    cooldown_images: int = Field(0, ge=0)  # over the last so many images it goes linearly to nothing
    weight_decay: float = Field(0.0, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)  # largest norm of the gradient
    ema_halflife_images: int = Field(ge=0)
    power_averages: list[float] = Field([])  # further averages, by relative width (0 to 0.289), stored for post-hoc EMA
    snapshot_images: Positive = 10_000  # how often they are stored
    start: str | None = Field(
        None, pattern="^[0-9a-f]{64}$"
    )  # sha256 of a model whose weights to begin with; null: anew

    cpu: Device = Device()
    cuda: Device = Device(compile=True)
    microbatch: Positive | Literal["largest"] | None = None  # images of a rank in memory at once; null: its whole share
    recompute: bool = False  # activations are recomputed instead of kept: less memory, a third more time
    ranks: int = Field(1, ge=1, le=1024)  # processes; above 1 they are started by torchrun
    sharded: bool = False  # weights and optimiser split over the ranks (FSDP2) instead of repeated on each (DDP)
    workers: int = Field(0, ge=0, le=64)  # processes that read ahead where the examples do not fit into memory
    memory_gb: float = Field(
        4.0, ge=0
    )  # examples that are larger than this are read from the shards as they are needed

    checkpoint_images: Positive  # a checkpoint each so many images
    checkpoints_kept: Positive = 2  # the latest so many
    watch_images: Positive | None = None  # losses, gaps and samples at checkpoints so far apart; null: at each
    distance_samples: int = Field(0, ge=0)  # samples drawn at each watch for the distance to held-out data
    keep: Literal["validation_loss", "distance", "last"] = "validation_loss"  # which averaged weights become the model
    stop: Stop = Stop()
    seed: Seed = 0

    @model_validator(mode="after")
    def _trains(self) -> Optimisation:
        for batch in (self.batch, *(growth.batch for growth in self.batch_growth)):
            if batch % self.ranks:
                raise ValueError(f"batch must be a multiple of ranks ({self.ranks}), got {batch}")
        starts = [growth.images for growth in self.batch_growth]
        if starts != sorted(set(starts)):
            raise ValueError("batch_growth must be in the order of images")
        if any(not 0 < width < 12**-0.5 for width in self.power_averages):
            raise ValueError(f"power_averages must lie between 0 and {12**-0.5:.4f}")
        if self.distance_samples == 0 and (self.keep == "distance" or self.stop.converged):
            raise ValueError(
                "distance_samples must be positive where the distance decides what is kept or when to stop"
            )
        return self
