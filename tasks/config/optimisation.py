"""How a model is trained: length, batch, learning rate, devices, checkpoints, early stopping.

Every length is in images seen, so that it means the same for any batch size and any number of ranks.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tasks.config.section import Positive, Section, Seed


class Growth(Section):
    """A larger batch from a number of images on."""

    images: Positive
    batch: Positive


class Device(Section):
    """How the network is computed on one kind of device."""

    # Of matrix products; weights and sums are always fp32. auto: bf16 if the hardware multiplies it, else fp32.
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    compile: bool = False  # through torch.compile


class Stop(Section):
    """Early stopping. Each criterion needs held-out examples."""

    memorizing: bool = False  # when the losses tell training examples from held-out ones
    converged: bool = False  # when the distance of samples to held-out data stops falling
    turned: bool = False  # when the held-out loss rises
    patience: Positive = 3  # evaluations in a row that must agree


WIDEST = 12**-0.5  # relative width of the average of all weights with equal shares
WIDTHS = (0.05, 0.1)  # of the power averages from which others are computed; Karras et al. 2024 take these
SNAPSHOTS = 16  # of each power average in a training
MOST_SNAPSHOTS = 1000  # from which an average is computed
LARGEST_ERROR = 0.05  # of a computed average's profile


class KeptAverage(Section):
    """The model is the power average of this relative width, computed when the training ends (post-hoc EMA)."""

    ema: float = Field(gt=0, lt=WIDEST)


def _keep_form(value: object) -> str:
    return "average" if isinstance(value, dict | KeptAverage) else "name"


KeepName = Literal["validation_loss", "before_memorizing", "distance", "last"]
Keep = Annotated[Annotated[KeepName, Tag("name")] | Annotated[KeptAverage, Tag("average")], Discriminator(_keep_form)]


class Optimisation(Section):
    """The training of one model, counted in images seen."""

    images: Positive  # length of the training
    batch: Positive  # total over all ranks and micro-batches, not per device
    batch_growth: list[Growth] = Field([])  # larger batches later
    # adamw_8bit: with moments of 8 bits; muon: for the matrices of the repeated blocks, AdamW for the rest
    optimiser: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    learning_rate: float = Field(gt=0, lt=1)  # of AdamW, for the first batch size
    muon_learning_rate: float = Field(0.005, gt=0, lt=1)  # follows the same schedule
    batch_lr_power: float = Field(0.5, ge=0, le=1)  # learning rate ~ batch to this power: 1 linear, 0.5 square root
    warmup_images: int = Field(ge=0)  # the learning rate rises linearly to its value
    decay_from_images: int = Field(0, ge=0)  # from here on it falls with the inverse square root; 0: never
    cooldown_images: int = Field(0, ge=0)  # over the last images it falls linearly to 0
    weight_decay: float = Field(0.0, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)  # largest norm of the gradient
    ema_halflife_images: int = Field(ge=0)
    # Further averages, by relative width (0 to 0.289), stored for post-hoc EMA; []: those that `keep` needs.
    power_averages: list[float] = Field([])
    snapshot_images: Positive | None = None  # how often they are stored; null: 16 times
    # Warm start: sha256 of the model whose weights to start with; null: none.
    start: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    cpu: Device = Device()
    cuda: Device = Device(compile=True)
    microbatch: Positive | Literal["largest"] | None = None  # images per rank in memory at once; null: all of a step
    recompute: bool = False  # recompute activations: less memory, a third more time
    # Processes; more than one are started by torchrun. auto: one for each GPU, or for each core of a machine without any.
    ranks: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = 1
    sharded: bool = False  # weights and optimiser sharded over the ranks (FSDP2) instead of replicated (DDP)
    workers: int = Field(0, ge=0, le=64)  # processes that read ahead if the examples do not fit into memory
    # If the examples need more memory than this, they are read from the shards when they are needed.
    memory_gb: float = Field(4.0, ge=0)

    checkpoint_images: Positive  # images between checkpoints
    checkpoints_kept: Positive = 2  # only the latest ones
    watch_images: Positive | None = None  # images between evaluations; null: at each checkpoint
    distance_samples: int = Field(0, ge=0)  # samples per evaluation, for the distance to held-out data
    # Which averaged weights become the model: those of an evaluation, or {ema: width}, computed at the end.
    keep: Keep = "validation_loss"
    stop: Stop = Stop()
    seed: Seed = 0

    def batches(self) -> list[int]:
        """Every batch size of the training."""
        return [self.batch, *(growth.batch for growth in self.batch_growth)]

    @property
    def snapshot_widths(self) -> list[float]:
        """The relative widths of the power averages of which snapshots are stored."""
        if self.power_averages or not isinstance(self.keep, KeptAverage):
            return sorted(set(self.power_averages))
        return list(WIDTHS)

    @property
    def snapshot_interval(self) -> int:
        """Images between the snapshots of the power averages."""
        return self.snapshot_images or -(-self.images // SNAPSHOTS)

    @model_validator(mode="after")
    def _is_consistent(self) -> Optimisation:
        for batch in self.batches():
            if self.ranks != "auto" and batch % self.ranks:
                raise ValueError(f"batch must be a multiple of ranks ({self.ranks}), got {batch}")
        if self.optimiser == "adamw_8bit" and self.sharded:
            raise ValueError("optimiser adamw_8bit does not go with sharded: moments of 8 bits are not shared out")
        starts = [growth.images for growth in self.batch_growth]
        if starts != sorted(set(starts)):
            raise ValueError("batch_growth must be sorted by images")
        if any(not 0 < width < WIDEST for width in self.power_averages):
            raise ValueError(f"power_averages must lie between 0 and {WIDEST:.4f}")
        if self.distance_samples == 0 and (self.keep == "distance" or self.stop.converged):
            raise ValueError("distance_samples must be positive if keep is distance or stop.converged is true")
        return self

    @model_validator(mode="after")
    def _average_can_be_computed(self) -> Optimisation:
        if not isinstance(self.keep, KeptAverage) or self.keep.ema in self.snapshot_widths:
            return self
        from diffusion_core.training.ema import post_hoc_error, post_hoc_shares  # not above: torch takes long to import

        if self.images // self.snapshot_interval > MOST_SNAPSHOTS:
            raise ValueError(
                f"snapshot_images must be at least {-(-self.images // MOST_SNAPSHOTS)}: keep.ema reads them all"
            )
        times = [*range(self.snapshot_interval, self.images, self.snapshot_interval), self.images]
        snapshots = [(nimg, width) for nimg in times for width in self.snapshot_widths]
        shares = post_hoc_shares(snapshots, self.images, self.keep.ema)
        error = post_hoc_error(snapshots, self.images, self.keep.ema, shares)
        if error > LARGEST_ERROR:
            raise ValueError(
                f"keep.ema: a width of {self.keep.ema:g} cannot be computed from {len(times)} snapshots of averages of the "
                f"widths {', '.join(f'{width:g}' for width in self.snapshot_widths)}: add it to power_averages, or store "
                "more snapshots (snapshot_images)"
            )
        return self
