"""What a model is: the frozen `ViTConfig`.

Letters used here and everywhere else: N images, T tokens, D width, H heads, F hidden width, C channels, P patch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ..base.errors import check, short
from ..base.numbers import as_int, finite
from .config_format import read, write
from .parts import forward_macs
from .variants import VARIANTS

POOLS = ("cls", "mean", "mean_all", "none")
POS_TOKENS = ("all", "patches")
ACTIVATIONS = ("gelu_tanh", "gelu_erf", "quick_gelu", "silu", "relu")
GELUS = {"tanh": "gelu_tanh", "erf": "gelu_erf"}  # values of the alias `gelu`

# Other names of a field, most of them timm's and transformers', accepted by the constructor and by `variant`.
ALIASES = {
    "img_size": "image_size",
    "in_chans": "channels",
    "num_channels": "channels",
    "embed_dim": "width",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_heads": "heads",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "num_classes": "classes",
    "layer_norm_eps": "eps",
    "init_values": "layer_scale",
    "layerscale_value": "layer_scale",
    "reg_tokens": "registers",
    "num_register_tokens": "registers",
    "gelu": "activation",  # the field's former name, with its values of GELUS
}

T = TypeVar("T")


def _by_field(given: dict[str, Any], every_field: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Arguments with each alias replaced by the field's own name.

    A field given under two names is a `TypeError`, unless `every_field` is given under its own name: that is
    `dataclasses.replace`, which passes on what it does not change. Then the alias is the change.
    """
    fields = {name: value for name, value in given.items() if name not in ALIASES}
    names = {} if every_field and every_field <= fields.keys() else {name: name for name in fields}
    for name in [name for name in given if name in ALIASES]:
        field, value = ALIASES[name], given[name]
        if field in names:
            one, other = sorted((names[field], name))
            raise TypeError(f"{one} and {other} are two names of one field, {field}: give one of them")
        if name == "gelu":
            check(value in tuple(GELUS), f"gelu must be one of {tuple(GELUS)}, got {value!r}")
            value = GELUS[value]
        fields[field], names[field] = value, name
    return fields


def _accepts_aliases(cls: type[T]) -> type[T]:
    """The dataclass `cls` with a constructor that also takes the names of `ALIASES`."""
    construct: Callable[..., None] = cls.__init__
    every_field = frozenset(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @functools.wraps(construct)
    def __init__(self, *args, **given):
        construct(self, *args, **_by_field(given, every_field))

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


@_accepts_aliases
@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of a Vision Transformer with pre-norm blocks (Dosovitskiy et al. 2021, arXiv:2010.11929).

    Parameters
    ----------
    image_size : int or (int, int)
        Height and width in pixels; one number means a square. Both must be multiples of `patch_size`.
    patch_size : int
        Side P of a square patch.
    channels : int
        Channels C of an image.
    width, depth, heads, hidden : int
        Token width D, number of blocks, attention heads H (must divide D), width F of the MLP's hidden layer
        (0, the default, means 4 D).
    classes : int
        Number of classes, the width of the logits.
    pool : "cls", "mean", "mean_all" or "none"
        What the head sees: the class token, the mean over the patches' tokens, the mean over all tokens, or every token
        by itself.
    bias : bool
        Whether the linear layers (patch embedding, q, k, v, projection, MLP, head) have biases.
    norm_affine : bool
        Whether the layer norms have a learned scale and shift.
    final_norm : bool
        Whether a layer norm stands between the last block and the pooling.
    activation : "gelu_tanh", "gelu_erf", "quick_gelu", "silu" or "relu"
        The MLP's nonlinear function: GELU by tanh or exactly (Hendrycks & Gimpel 2016, arXiv:1606.08415), x σ(1.702 x),
        x σ(x) or max(x, 0). `gelu`, "tanh" or "erf", is another name for the first two.
    eps : float
        Added to the variance in every layer norm; below 1, and at least 1.2e-38, the smallest normal number of float32.

    gated : bool
        Whether the hidden layer is activation(x @ W_gate) * (x @ W_1), both F wide (Shazeer 2020, arXiv:2002.05202);
        with "silu" it is SwiGLU.
    layer_scale : None, float or (float or None, float or None)
        Initial values of the factors, one a channel, that the attention's and the MLP's results are multiplied by
        before they are added to the residual stream (Touvron et al. 2021, arXiv:2103.17239). One number is for both
        branches, a None in the pair for a branch without factors.

    class_token : bool, optional
        Whether a learned class token stands before the patches. None, the default, means: where `pool` is "cls".
    dist_token : bool
        Whether a distillation token stands behind the class token (Touvron et al. 2021, arXiv:2012.12877).
    registers : int
        Number R of register tokens before the patches (Darcet et al. 2024, arXiv:2309.16588).
    pos_tokens : "all" or "patches"
        Which tokens have a row of the position embedding. The sequence is [class, distillation, registers, patches] in
        either case; with "patches", timm's `no_embed_class`, the tokens before the patches have no position.

    Notes
    -----
    The constructor, `variant` and `dataclasses.replace` also take the names of timm and transformers. A field given
    under two names is a `TypeError`.

        image_size    `img_size`                            channels   `in_chans`, `num_channels`
        width         `embed_dim`, `hidden_size`            hidden     `intermediate_size`
        depth         `num_hidden_layers`                   heads      `num_heads`, `num_attention_heads`
        classes       `num_classes`                         eps        `layer_norm_eps`
        layer_scale   `init_values`, `layerscale_value`     registers  `reg_tokens`, `num_register_tokens`

    Examples
    --------
    >>> ViTConfig.variant("S/16", classes=10).width
    384
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
    width: int = 192
    depth: int = 12
    heads: int = 3
    hidden: int = 0
    classes: int = 1000
    pool: str = "cls"
    bias: bool = True
    norm_affine: bool = True
    final_norm: bool = True
    activation: str = "gelu_tanh"
    eps: float = 1e-6
    layer_scale: float | tuple[float | None, float | None] | None = None
    class_token: bool | None = None
    dist_token: bool = False
    registers: int = 0
    pos_tokens: str = "all"
    gated: bool = False

    def __post_init__(self):
        size = self.image_size
        if not isinstance(size, (tuple, list)):
            size = (size, size)
        check(len(size) == 2, f"image_size must be one number or (height, width), got {self.image_size!r}")

        def fix(name, value):
            object.__setattr__(self, name, value)

        fix("image_size", (as_int("image_size", size[0]), as_int("image_size", size[1])))
        for name in ("patch_size", "channels", "width", "heads", "classes"):
            fix(name, as_int(name, getattr(self, name)))
        fix("depth", as_int("depth", self.depth, minimum=0))
        fix("hidden", as_int("hidden", self.hidden, minimum=0) or 4 * self.width)
        fix("registers", as_int("registers", self.registers, minimum=0))
        for name in ("bias", "norm_affine", "final_norm", "dist_token", "gated"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not (self.class_token is None or isinstance(self.class_token, bool)):
            raise TypeError(f"class_token must be True, False or None, got {self.class_token!r}")
        check(self.pool in POOLS, f"pool must be one of {POOLS}, got {self.pool!r}")
        check(self.pos_tokens in POS_TOKENS, f"pos_tokens must be one of {POS_TOKENS}, got {self.pos_tokens!r}")
        check(self.pool != "cls" or self.has_class_token, "pool 'cls' needs a class token, got class_token=False")
        check(self.activation in ACTIVATIONS, f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        height, width = self.image_size
        check(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            f"patch_size must divide the image size {height}x{width}, got {self.patch_size}",
        )
        check(self.width % self.heads == 0, f"heads must divide the width {self.width}, got {self.heads}")
        fix("eps", finite("eps", self.eps))
        check(0 < self.eps < 1, f"eps must lie between 0 and 1, got {self.eps}")
        tiny = float(np.finfo(np.float32).tiny)  # what is smaller may count as zero, and a constant row has no variance
        check(self.eps >= tiny, f"eps must be at least {tiny:.2g}, the smallest normal float32, got {self.eps}")
        fix("layer_scale", _layer_scale(self.layer_scale))

    @property
    def gelu(self) -> str | None:
        """Which GELU the activation is, "tanh" or "erf"; None where it is none."""
        return next((form for form, name in GELUS.items() if name == self.activation), None)

    @property
    def layer_scales(self) -> tuple[float | None, float | None]:
        """Initial values of the attention's and the MLP's layer scale, None for a branch without one."""
        return (None, None) if self.layer_scale is None else self.layer_scale  # type: ignore[return-value]

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)

    @property
    def has_class_token(self) -> bool:
        """Whether there is a class token."""
        return self.pool == "cls" if self.class_token is None else self.class_token

    @property
    def prefix_tokens(self) -> int:
        """Learned tokens that stand before the patches: class token, distillation token and registers."""
        return self.has_class_token + self.dist_token + self.registers

    @property
    def tokens(self) -> int:
        """Tokens T of one image: the learned ones before its patches, and its patches."""
        return self.prefix_tokens + self.patches

    @property
    def pos_rows(self) -> int:
        """Rows of the position embedding: one for every token, or one for every patch."""
        return self.tokens if self.pos_tokens == "all" else self.patches

    @property
    def patch_features(self) -> int:
        """Values of one patch, C·P·P."""
        return self.channels * self.patch_size**2

    @property
    def head_width(self) -> int:
        """Width of one attention head, D / H."""
        return self.width // self.heads

    def forward_flops(self, batch: int = 1) -> int:
        """Floating-point operations of a forward pass: GEMMs and attention products, a multiply-add counted as two."""
        return 2 * forward_macs(self) * batch

    @classmethod
    def variant(cls, name: str, **changes) -> ViTConfig:
        """A named variant, `"Ti/16"`, `"S/16"`, `"B/32"`, …: a row of `VARIANTS` and a patch size.

        Any field can be changed: `ViTConfig.variant("B/16", classes=10, image_size=384)`.
        """
        size, _, patch = name.partition("/") if isinstance(name, str) else ("", "", "")
        check(
            size in VARIANTS and patch.isdecimal(),
            f"name must be one of {', '.join(VARIANTS)} with a patch size, like 'S/16', got {name!r}",
        )
        width, depth, heads, hidden = VARIANTS[size]
        fields = dict(width=width, depth=depth, heads=heads, hidden=hidden, patch_size=int(patch))
        return cls(**{**fields, **_by_field(changes)})

    @classmethod
    def plain(cls, **fields) -> ViTConfig:
        """The plain architecture of `vit_classify`: class token, no biases, no norm scales, no final norm.

        F is D and eps 1e-5 unless `fields` say otherwise; `width` must be given.
        """
        fields = {"eps": 1e-5, **_by_field(fields)}
        fields.setdefault("hidden", fields["width"])
        return cls(pool="cls", bias=False, norm_affine=False, final_norm=False, activation="gelu_tanh", **fields)

    def to_json(self) -> str:
        """The configuration as a JSON object: one key a field, and the number of the format (see config_format.py)."""
        return write(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ViTConfig:
        """The configuration that `to_json` wrote, in this or an earlier version of cvit.

        A key that the file's format lacks has the default of that format's time. An unknown key, a later format or a
        wrong value is a `ValueError`.
        """
        fields = read(text)
        try:
            return cls(**fields)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"config: {short(error, 200)}") from None


def _layer_scale(value) -> tuple[float | None, float | None] | None:
    """`layer_scale` as a pair, or None where neither branch has one."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    check(len(pair) == 2, f"layer_scale must be None, one number or a pair, got {short(repr(value))}")
    largest = float(np.finfo(np.float32).max)
    scales = []
    for one in pair:
        if one is not None:
            one = finite("layer_scale", one, minimum=-largest)
            check(one <= largest, f"layer_scale must be at most {largest:g}, got {one}")
        scales.append(one)
    return None if scales == [None, None] else (scales[0], scales[1])
