"""`Recipe`: every setting of a training run beside data and model; and the presets, each with its source.

A preset is a function of the pictures' size and number. What a user gives on top of it replaces single settings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from ..base.errors import check, listed, short
from ..base.numbers import as_int, finite, shown
from ..data.augmentation import Affine, Augmentation
from ..data.mixing import Mixing
from ..model.precision import dtype_of
from ..train.optim import SGD, AdamW, warmup_cosine

SMALL, MIDDLE = 40, 96  # pixels of an edge up to which pictures are small, or middle-sized
OPTIMIZERS = ("adamw", "sgd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run that its result depends on, beside data, first weights and the machine's instruction set,
    on which nothing depends in precision "bf16".

    Parameters
    ----------
    epochs, batch_size : int
        Passes over the pictures, and pictures a step.
    accumulate : int
        Parts in which a batch goes through the model.
    exact_reduction : int or None
        See `cvit.train.fit`: how many parts of a batch are summed in a fixed order, None for one a rank.
    optimizer : "adamw" or "sgd"
    lr, final_lr, warmup_lr : float
        The highest learning rate, the last, and the one that the warm-up begins with.
    warmup : float in [0, 1)
        Share of the steps in which the learning rate rises; then it falls as half a cosine.
    weight_decay, momentum : float
        `momentum` is SGD's.
    layer_decay : float in (0, 1]
        The learning rate of a block is this times that of the block behind it (BEiT, arXiv:2106.08254).
    clip_norm : float or None
    label_smoothing, mixup, cutmix, mix_prob : float
        `mixup` and `cutmix` are the parameters of their beta distributions, 0 for without; `mix_prob` is the share of
        batches that are mixed.
    drop_path, dropout : float in [0, 1)
    ema : float in [0, 1) or None
        Decay of a moving average of the weights.
    freeze : tuple of str
        Patterns of tensors' names that keep their values, "patch_embed.*" for instance.
    train_blocks : int or None
        Only so many last blocks and what follows them are trained; None means all. 0 is what follows the blocks.
    head_only : bool
        Only the head is trained, on features that are computed once.
    class_weight : "balanced" or None
    patience : int or None
        Epochs without a better validation after which the run ends.
    augmentation : Augmentation
    seed : int
        Of first weights, order, augmentation, mixing, dropout and stochastic depth.
    precision : "f32", "f64", "bf16" or "bf16-fast"
        Of model and optimizer; a run takes the model's.
    """

    epochs: int = 100
    batch_size: int = 64
    accumulate: int = 1
    exact_reduction: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    final_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup: float = 0.05
    weight_decay: float = 0.05
    momentum: float = 0.9
    layer_decay: float = 1.0
    clip_norm: float | None = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    drop_path: float = 0.0
    dropout: float = 0.0
    ema: float | None = None
    freeze: tuple[str, ...] = ()
    train_blocks: int | None = None
    head_only: bool = False
    class_weight: str | None = None
    patience: int | None = None
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation.none)
    seed: int = 0
    precision: str = "f32"

    def __post_init__(self):
        fix = functools.partial(object.__setattr__, self)
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("seed", 0)):
            fix(name, as_int(name, getattr(self, name), minimum=least))
        for name, least in (("train_blocks", 0), ("patience", 1), ("exact_reduction", 1)):
            value = getattr(self, name)
            fix(name, None if value is None else as_int(name, value, minimum=least))
        for name in ("lr", "final_lr", "warmup_lr", "weight_decay", "mixup", "cutmix"):
            fix(name, finite(name, getattr(self, name)))
        for name in ("warmup", "label_smoothing", "drop_path", "dropout", "momentum"):
            fix(name, finite(name, getattr(self, name)))
            check(getattr(self, name) < 1, f"{name} must be below 1, got {getattr(self, name)!r}")
        for name in ("layer_decay", "mix_prob"):
            fix(name, finite(name, getattr(self, name)))
            check(getattr(self, name) <= 1, f"{name} must be at most 1, got {getattr(self, name)!r}")
        check(self.layer_decay > 0, "layer_decay must be above 0, got 0")
        if self.clip_norm is not None:
            fix("clip_norm", finite("clip_norm", self.clip_norm))
            check(self.clip_norm > 0, "clip_norm must be above 0 (None means no clipping)")
        if self.ema is not None:
            fix("ema", finite("ema", self.ema))
            check(self.ema < 1, f"ema must be below 1, got {self.ema!r}")
        check(
            self.optimizer in OPTIMIZERS, f"optimizer must be one of {listed(OPTIMIZERS)}, got {shown(self.optimizer)}"
        )
        dtype_of(self.precision)
        known = self.class_weight in (None, "balanced")
        check(known, f"class_weight must be 'balanced' or None, got {shown(self.class_weight)}")
        if not isinstance(self.augmentation, Augmentation):
            raise TypeError(f"augmentation must be an Augmentation, got {shown(self.augmentation)}")
        fix("freeze", (self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze))

    # ------------------------------------------------------------------------------------------- what it makes of them
    @property
    def mixing(self) -> Mixing | None:
        """Mixup and cutmix of a batch, None for neither."""
        if not (self.mixup or self.cutmix) or not self.mix_prob:
            return None
        return Mixing(mixup=self.mixup, cutmix=self.cutmix, prob=self.mix_prob, smoothing=self.label_smoothing)

    def make_optimizer(self, model, trained) -> AdamW | SGD:
        """The optimizer for a model of which the tensors `trained` are trained (None: all)."""
        common = dict(lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay, trained=trained)
        if self.optimizer == "sgd":
            return SGD(model, momentum=self.momentum, nesterov=self.momentum > 0, **common)
        return AdamW(model, **common)

    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """The learning rate of each step of the run."""
        total = self.epochs * steps_per_epoch
        return functools.partial(
            warmup_cosine, total=total, warmup=round(self.warmup * total), base_lr=self.lr,
            final_lr=min(self.final_lr, self.lr), warmup_lr=min(self.warmup_lr, self.lr),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Fields that JSON can hold."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"freeze": list(self.freeze), "augmentation": self.augmentation.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Recipe:
        """What `to_json` gave; anything else is a `ValueError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = [name for name in fields if name not in known]
        check(not unknown, f"a recipe has no setting {listed(unknown, 4)}")
        check("augmentation" in fields, "a recipe must have augmentation")
        try:
            return cls(**{**fields, "augmentation": Augmentation.from_json(fields["augmentation"])})
        except TypeError as error:  # in a file a wrong type is a wrong value
            raise ValueError(f"a recipe: {short(error, 200)}") from None


# ------------------------------------------------------------------------------------------------------------- presets
def scratch(edge: int, count: int) -> Recipe:
    """A model that has seen nothing, on pictures whose shorter edge is `edge`.

    The optimizer is DeiT's (Touvron et al. 2021, arXiv:2012.12877): AdamW with decay 0.05, cosine, smoothing 0.1. On
    small pictures random small affine maps stand for its random resized crops, which would take too much of 8 to 40
    pixels away; on middle-sized ones the crops keep at least 0.4 of the area; on large ones augmentation is DeiT's,
    with RandAugment and random erasing, mixup and cutmix in half of the batches. The fewer the pictures the more a ViT
    needs them (Steiner et al. 2021, arXiv:2106.10270). Mirroring is off for small pictures, which may be letters or
    digits.
    """
    if edge <= SMALL:
        few = count < 10_000  # of more pictures fewer passes make as many steps
        return Recipe(
            epochs=60 if few else 20, batch_size=32, lr=2e-3 if few else 1e-3,
            augmentation=dataclasses.replace(Augmentation.none(), affine=Affine()),
        )  # fmt: skip
    common: dict[str, Any] = dict(
        epochs=100, batch_size=32, lr=1e-3, drop_path=0.1, mixup=0.2, cutmix=1.0, mix_prob=0.5, ema=0.999
    )  # fmt: skip
    if edge <= MIDDLE:
        crops = Augmentation(
            crop_scale=(0.4, 1.0), flip=0.5, rand_augment=None, color_jitter=0.2, erasing=0.1, interpolation="bicubic"
        )
        return Recipe(**common, augmentation=crops)
    deit = Augmentation(crop_scale=(0.08, 1.0), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25)
    return Recipe(**{**common, "mixup": 0.8, "mix_prob": 1.0}, augmentation=deit)


def finetune(edge: int, count: int) -> Recipe:
    """A model that was trained on much more, all of its weights.

    After timm's author's recipe for fine-tuning ViTs (the discussion of timm/vit_base_patch16_224.augreg2_in21k_ft_in1k
    on the Hugging Face Hub): a low learning rate that falls layer by layer, 0.7 each, short warm-up, stochastic depth
    0.1, clipping at 2. Crops keep at least half of the area, and no mixing, which needs long runs.
    """
    crops = Augmentation(crop_scale=(0.5, 1.0), flip=0.5 if edge > SMALL else 0.0, color_jitter=0.1, erasing=0.0)
    return Recipe(
        epochs=20 if count < 5000 else 10, batch_size=32, lr=2e-4, final_lr=1e-6, layer_decay=0.7, drop_path=0.1,
        clip_norm=2.0, augmentation=crops,
    )  # fmt: skip


def probe(edge: int, count: int) -> Recipe:
    """A linear classifier on a frozen model's features, which are computed once.

    The linear evaluation of Dosovitskiy et al. 2021 (arXiv:2010.11929) and of DINOv2 (arXiv:2304.07193): no
    augmentation, many short epochs.
    """
    return Recipe(
        epochs=100, batch_size=128 if count > 1000 else 32, lr=3e-3, weight_decay=1e-4, clip_norm=None, head_only=True,
        label_smoothing=0.0, warmup=0.0,
    )  # fmt: skip


PRESETS: dict[str, Callable[[int, int], Recipe]] = {"scratch": scratch, "finetune": finetune, "probe": probe}


def recipe_of(preset: str, edge: int, count: int, settings: Mapping[str, Any]) -> Recipe:
    """A preset for pictures of that edge and number, with single settings replaced.

    `settings` are fields of `Recipe`, and fields of `Augmentation` as well, each by its own name.
    """
    check(preset in PRESETS, f"preset must be one of {listed(PRESETS)}, got {shown(preset)}")
    recipe = PRESETS[preset](edge, count)
    own = {field.name for field in dataclasses.fields(Recipe)}
    of_pictures = {field.name for field in dataclasses.fields(Augmentation)}
    unknown = [name for name in settings if name not in own | of_pictures]
    check(not unknown, f"a recipe has no setting {listed(unknown, 4)}; it has {listed(sorted(own), 40)}")
    changes = {name: value for name, value in settings.items() if name in own}
    inside = {name: value for name, value in settings.items() if name in of_pictures}
    if inside:
        base = changes.get("augmentation", recipe.augmentation)
        changes["augmentation"] = dataclasses.replace(base, **inside)
    return dataclasses.replace(recipe, **changes)
