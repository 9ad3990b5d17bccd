"""What a model is: the frozen `ViTConfig`.

Letters used here and everywhere else: N images, T tokens, D width, H heads, F hidden width, C channels, P patch.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..base.errors import check, short
from ..base.numbers import as_int
from . import config_values
from .blocks import forward_macs
from .config_format import read, write
from .rope import Rope
from .variants import VARIANTS

POOLS = ("cls", "mean", "mean_all", "cls_mean", "map", "none")
POS_TOKENS = ("all", "class", "patches", "none")
ACTIVATIONS = ("gelu_tanh", "gelu_erf", "quick_gelu", "silu", "relu", "tanh")
NORMS = ("layer", "rms")
BLOCKS = ("pre", "post", "parallel", "pairs")
FLAGS = (
    "bias", "norm_affine", "final_norm", "dist_token", "gated", "patch_norm", "pre_norm", "qk_norm", "attn_norm",
    "mlp_norm", "fc_norm", "pool_prefix", "pool_query", "dist_head",
)  # fmt: skip
BIASES = ("patch_bias", "proj_bias", "mlp_bias", "pool_bias", "head_bias")
CHOICES = {
    "pool": POOLS, "pos_tokens": POS_TOKENS, "norm": NORMS, "block": BLOCKS, "activation": ACTIVATIONS,
    "pre_logits_activation": ACTIVATIONS,
}  # fmt: skip
SHAPE = ("image_size", "patch_size", "width", "depth", "heads", "hidden", "classes")  # what every repr shows
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
@dataclasses.dataclass(frozen=True, repr=False)
class ViTConfig:
    """The shape of a Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929).

    Parameters
    ----------
    image_size : int or (int, int)
        Height and width in pixels; one number means a square. Both must be multiples of `patch_size`.
    patch_size : int or (int, int)
        Height and width of a patch in pixels; one number P means a square. Kept as one number where both are equal.
    channels : int
        Channels C of an image.
    width, depth, heads, hidden : int
        Token width D, number of blocks, attention heads H (must divide D), width F of the MLP's hidden layer
        (0, the default, means 4 D).
    classes : int
        Number of classes, the width of the logits; 0 for a model without a head, whose result are its features.
    pool : "cls", "mean", "mean_all", "cls_mean", "map" or "none"
        What the head sees: the class token (of several, their mean), the mean over the patches' tokens, the mean over
        all tokens, the class token beside the mean over the patches (2 D wide), attention pooling (Lee et al. 2019,
        arXiv:1810.00825; see `pool_heads`), or every token by itself.
    bias : bool
        Whether the linear layers (patch embedding, q, k, v, projection, MLP, head) have biases, where none of the
        options below says otherwise.
    norm_affine : bool
        Whether the layer norms have a learned scale and shift.
    final_norm : bool
        Whether a layer norm stands between the last block and the pooling.
    activation : "gelu_tanh", "gelu_erf", "quick_gelu", "silu", "relu" or "tanh"
        The MLP's nonlinear function: GELU by tanh or exactly (Hendrycks & Gimpel 2016, arXiv:1606.08415), x σ(1.702 x),
        x σ(x), max(x, 0) or tanh(x). `gelu`, "tanh" or "erf", is another name for the first two.
    eps : float
        Added to the variance in every layer norm; below 1, and at least 1.2e-38, the smallest normal number of float32.

    gated : bool
        Whether the hidden layer is activation(x @ W_gate) * (x @ W_1), both F wide (Shazeer 2020, arXiv:2002.05202);
        with "silu" it is SwiGLU.
    layer_scale : None, float or (float or None, float or None)
        Initial values of the factors, one a channel, that the attention's and the MLP's results are multiplied by
        before they are added to the residual stream (Touvron et al. 2021, arXiv:2103.17239). One number is for both
        branches, a None in the pair for a branch without factors.

    class_token : bool or int, optional
        How many learned class tokens stand before the patches. None, the default, means one where `pool` is "cls" or
        "cls_mean", and none elsewhere.
    dist_token : bool
        Whether a distillation token stands behind the class token (Touvron et al. 2021, arXiv:2012.12877).
    registers : int
        Number R of register tokens before the patches (Darcet et al. 2024, arXiv:2309.16588).
    pos_tokens : "all", "class", "patches" or "none"
        Which tokens have a row of the position embedding: all, all but the registers, the patches alone (timm's
        `no_embed_class`), or none. The sequence is [class, distillation, registers, patches] in any case.

    patch_bias : bool, optional
        Whether the patch embedding has a bias; None, as for the other options of this kind, means `bias`.
    patch_norm : bool
        Whether a norm stands between the patch embedding and the positions.
    pre_norm : bool
        Whether a norm stands before the first block (Radford et al. 2021, arXiv:2103.00020).
    norm : "layer" or "rms"
        Every norm of the model: layer norm (Ba et al. 2016, arXiv:1607.06450) or RMSNorm, without mean and shift (Zhang
        & Sennrich 2019, arXiv:1910.07467).
    norm_eps : mapping of str to float
        Norms that have another eps, by name: "patch_norm", "norm_pre", "norm1", "attn.qk_norm", "attn.norm", "norm2",
        "mlp.norm", "norm" (the final one), "pool.norm" or "fc_norm". Kept as sorted pairs.
    block : "pre", "post", "parallel" or "pairs"
        What a block does with the residual stream x. "pre": x += attention(norm(x)), x += MLP(norm(x)). "post":
        x += norm(attention(x)), x += norm(MLP(x)) (Liu et al. 2022, arXiv:2111.09883). "parallel":
        x += attention(norm(x)) + MLP(norm(x)), one norm (Dehghani et al. 2023, arXiv:2302.05442). "pairs": two
        attentions side by side, then two MLPs (Touvron et al. 2022, arXiv:2203.09795).
    rope : Rope, optional
        Rotary positions of the patches' queries and keys; see `Rope`. The head width must be a multiple of 4.
    qkv_bias : bool or (bool, bool, bool), optional
        Whether q, k and v have biases.
    qk_norm : bool
        Whether each head's queries and keys go through a norm of the head's width, before rotary positions.
    attn_norm, mlp_norm : bool
        Whether a norm stands before the attention's output projection, and before the MLP's second layer (Shleifer et
        al. 2021, arXiv:2110.09456).
    proj_bias, mlp_bias, head_bias : bool, optional
        Whether the attention's output projection, the MLP's layers, and the head have biases.
    fc_norm : bool
        Whether a norm stands behind the pooling.
    pool_heads, pool_hidden : int
        Attention pooling's heads (0: as the blocks') and the hidden width of the MLP behind it (0: `hidden`; -1: there
        is no MLP).
    pool_prefix : bool
        Whether attention pooling sees the tokens before the patches, too.
    pool_query : bool
        Whether attention pooling's query is a product of the learned vector, or the vector itself.
    pool_bias : bool, optional
        Whether attention pooling's q, k and v have biases.
    pre_logits : int
        Width of a linear layer and its activation before the head; 0 for none.
    pre_logits_activation : str
        One of those of `activation`.
    dist_head : bool
        Whether the distillation token has a head of its own; the logits are the mean of the two.

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
    patch_size: int | tuple[int, int] = 16
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
    class_token: bool | int | None = None
    dist_token: bool = False
    registers: int = 0
    pos_tokens: str = "all"
    gated: bool = False
    patch_bias: bool | None = None
    patch_norm: bool = False
    pre_norm: bool = False
    norm: str = "layer"
    norm_eps: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    block: str = "pre"
    rope: Rope | None = None
    qkv_bias: bool | tuple[bool, bool, bool] | None = None
    qk_norm: bool = False
    attn_norm: bool = False
    proj_bias: bool | None = None
    mlp_bias: bool | None = None
    mlp_norm: bool = False
    fc_norm: bool = False
    pool_heads: int = 0
    pool_hidden: int = 0
    pool_prefix: bool = True
    pool_query: bool = True
    pool_bias: bool | None = None
    pre_logits: int = 0
    pre_logits_activation: str = "tanh"
    head_bias: bool | None = None
    dist_head: bool = False

    def __post_init__(self):
        size = self.image_size
        if not isinstance(size, (tuple, list)):
            size = (size, size)
        check(len(size) == 2, f"image_size must be one number or (height, width), got {self.image_size!r}")

        def fix(name, value):
            object.__setattr__(self, name, value)

        fix("image_size", (as_int("image_size", size[0]), as_int("image_size", size[1])))
        patch = self.patch_size
        if isinstance(patch, (tuple, list)):
            check(len(patch) == 2, f"patch_size must be one number or (height, width), got {short(repr(patch))}")
            patch = (as_int("patch_size", patch[0]), as_int("patch_size", patch[1]))
            fix("patch_size", patch[0] if patch[0] == patch[1] else patch)
        else:
            fix("patch_size", as_int("patch_size", patch))
        for name in ("channels", "width", "heads"):
            fix(name, as_int(name, getattr(self, name)))
        fix("hidden", as_int("hidden", self.hidden, minimum=0) or 4 * self.width)
        for name in ("depth", "classes", "registers", "pool_heads", "pre_logits"):
            fix(name, as_int(name, getattr(self, name), minimum=0))
        fix("pool_hidden", as_int("pool_hidden", self.pool_hidden, minimum=-1))
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {short(repr(getattr(self, name)))}")
        for name in BIASES:
            if not (getattr(self, name) is None or isinstance(getattr(self, name), bool)):
                raise TypeError(f"{name} must be True, False or None, got {short(repr(getattr(self, name)))}")
        fix("qkv_bias", config_values.three_biases(self.qkv_bias))
        if not (self.class_token is None or isinstance(self.class_token, bool)):
            fix("class_token", as_int("class_token", self.class_token, minimum=0))
        if self.rope is not None and not isinstance(self.rope, Rope):
            raise TypeError(f"rope must be a Rope or None, got {short(repr(self.rope))}")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            check(value in known, f"{name} must be one of {known}, got {short(repr(value))}")
        needs_class = self.pool in ("cls", "cls_mean")
        check(
            not needs_class or self.class_tokens > 0,
            f"pool {self.pool!r} needs a class token, got class_token={self.class_token}",
        )
        (height, width), (down, across) = self.image_size, self.patch
        check(
            height % down == 0 and width % across == 0,
            f"patch_size must divide the image size {height}x{width}, got {self.patch_size}",
        )
        check(self.width % self.heads == 0, f"heads must divide the width {self.width}, got {self.heads}")
        if self.pool_heads:
            check(
                self.width % self.pool_heads == 0,
                f"pool_heads must divide the width {self.width}, got {self.pool_heads}",
            )
        if self.rope is not None:
            check(self.head_width % 4 == 0, f"rope needs a head width that is a multiple of 4, got {self.head_width}")
        check(
            not self.dist_head or (self.dist_token and self.pool == "cls"),
            "dist_head needs dist_token=True and pool='cls'",
        )
        check(
            not self.dist_head or not self.pre_logits, "dist_head goes with no pre_logits, which would be of both heads"
        )
        check(
            self.block != "pairs" or not (self.qk_norm or self.attn_norm or self.rope),
            "block 'pairs' goes with no qk_norm, attn_norm or rope",
        )
        check(
            self.pool != "none" or not (self.fc_norm or self.pre_logits or self.dist_head),
            "pool 'none' goes with no fc_norm, pre_logits or dist_head",
        )
        fix("eps", config_values.eps("eps", self.eps))
        fix("norm_eps", config_values.norm_eps(self.norm_eps))
        fix("layer_scale", config_values.layer_scale(self.layer_scale))
        check(self.layer_scale is None or self.block != "post", "block 'post' has no layer_scale")

    def eps_of(self, name: str) -> float:
        """The eps of a norm, by the name of its tensors or of its part, of any block and branch."""
        name = re.sub(r"^blocks\.\d+\.", "", name).replace("_2", "")
        return dict(self.norm_eps).get(re.sub(r"\b[qk]_norm", "qk_norm", name), self.eps)

    def has_bias(self, name: str) -> bool:
        """Whether the linear layers `name`, such as "patch" or "mlp", have biases."""
        own = getattr(self, f"{name}_bias")
        return self.bias if own is None else own

    @property
    def qkv_biases(self) -> tuple[bool, bool, bool]:
        """Whether q, k and v have biases."""
        return (self.bias,) * 3 if self.qkv_bias is None else self.qkv_bias  # type: ignore[return-value]

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return self.patch_size if isinstance(self.patch_size, tuple) else (self.patch_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch[0], self.image_size[1] // self.patch[1]

    def __repr__(self) -> str:
        """The shape, and every other field that is not at its default."""
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name in SHAPE or getattr(self, field.name) != field.default
        ]
        return f"ViTConfig({', '.join(shown)})"

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
        return self.grid[0] * self.grid[1]

    @property
    def class_tokens(self) -> int:
        """Number of class tokens."""
        return int(self.pool in ("cls", "cls_mean") if self.class_token is None else self.class_token)

    @property
    def prefix_tokens(self) -> int:
        """Learned tokens that stand before the patches: class tokens, distillation token and registers."""
        return self.class_tokens + self.dist_token + self.registers

    @property
    def tokens(self) -> int:
        """Tokens T of one image: the learned ones before its patches, and its patches."""
        return self.prefix_tokens + self.patches

    @property
    def pos_prefix(self) -> int:
        """How many of the tokens before the patches have a row of the position embedding."""
        return {"all": self.prefix_tokens, "class": self.prefix_tokens - self.registers}.get(self.pos_tokens, 0)

    @property
    def pos_rows(self) -> int:
        """Rows of the position embedding."""
        return 0 if self.pos_tokens == "none" else self.pos_prefix + self.patches

    @property
    def patch_features(self) -> int:
        """Values of one patch, C·P·P."""
        return self.channels * self.patch[0] * self.patch[1]

    @property
    def pooled_width(self) -> int:
        """Width of what the pooling leaves of an image."""
        return self.width * (2 if self.pool == "cls_mean" or self.dist_head else 1)

    @property
    def feature_width(self) -> int:
        """Width of the features, which the head sees; a head of the distillation token sees the second half."""
        return self.pre_logits or self.pooled_width

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
            f"name must be one of {', '.join(VARIANTS)} with a patch size, like 'S/16', got {short(repr(name))}",
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
            if isinstance(fields["rope"], dict):
                fields["rope"] = Rope(**fields["rope"])
            return cls(**fields)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"config: {short(error, 200)}") from None
