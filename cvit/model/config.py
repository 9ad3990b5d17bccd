"""What a model is: the frozen `ViTConfig`, and the table of named variants.

Letters used here and everywhere else: N images, T tokens, D width, H heads, F hidden width, C channels, P patch.
"""

from __future__ import annotations

import dataclasses
import json

from ..base.errors import check
from ..base.numbers import as_int, finite
from .parts import forward_macs

# name: (width D, depth, heads H, hidden width F), from the ViT paper's table 1 (Dosovitskiy et al. 2021,
# arXiv:2010.11929) and, for Ti and S, DeiT (Touvron et al. 2021, arXiv:2012.12877).
VARIANTS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
}

POOLS = ("cls", "mean")
GELUS = ("tanh", "erf")


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
    pool : "cls" or "mean"
        "cls" prepends a class token and classifies from it; "mean" has no class token and averages all tokens.
    bias : bool
        Whether the linear layers (patch embedding, q, k, v, projection, MLP, head) have biases.
    norm_affine : bool
        Whether the layer norms have a learned scale and shift.
    final_norm : bool
        Whether a layer norm stands between the last block and the pooling.
    gelu : "tanh" or "erf"
        GELU's tanh approximation or its exact form (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    eps : float
        Added to the variance in every layer norm.

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
    gelu: str = "tanh"
    eps: float = 1e-6

    def __post_init__(self):
        size = self.image_size
        if not isinstance(size, (tuple, list)):
            size = (size, size)
        check(len(size) == 2, f"image_size must be one number or (height, width), got {self.image_size!r}")
        fix = lambda name, value: object.__setattr__(self, name, value)
        fix("image_size", (as_int("image_size", size[0]), as_int("image_size", size[1])))
        for name in ("patch_size", "channels", "width", "heads", "classes"):
            fix(name, as_int(name, getattr(self, name)))
        fix("depth", as_int("depth", self.depth, minimum=0))
        fix("hidden", as_int("hidden", self.hidden, minimum=0) or 4 * self.width)
        for name in ("bias", "norm_affine", "final_norm"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        check(self.pool in POOLS, f"pool must be one of {POOLS}, got {self.pool!r}")
        check(self.gelu in GELUS, f"gelu must be one of {GELUS}, got {self.gelu!r}")
        height, width = self.image_size
        check(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            f"patch_size must divide the image size {height}x{width}, got {self.patch_size}",
        )
        check(self.width % self.heads == 0, f"heads must divide the width {self.width}, got {self.heads}")
        fix("eps", finite("eps", self.eps))
        check(0 < self.eps < 1, f"eps must lie between 0 and 1, got {self.eps}")

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)

    @property
    def tokens(self) -> int:
        """Tokens T of one image: its patches, and the class token where there is one."""
        return self.patches + (self.pool == "cls")

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
            size in VARIANTS and patch.isdigit(),
            f"name must be one of {', '.join(VARIANTS)} with a patch size, like 'S/16', got {name!r}",
        )
        width, depth, heads, hidden = VARIANTS[size]
        fields = dict(width=width, depth=depth, heads=heads, hidden=hidden, patch_size=int(patch))
        return cls(**{**fields, **changes})

    @classmethod
    def plain(cls, *, eps: float = 1e-5, **fields) -> ViTConfig:
        """The plain architecture of `vit_classify`: class token, no biases, no norm scales, no final norm, F = D."""
        fields.setdefault("hidden", fields["width"])
        return cls(pool="cls", bias=False, norm_affine=False, final_norm=False, gelu="tanh", eps=eps, **fields)

    def to_json(self) -> str:
        """The configuration as a JSON object, one key a field."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ViTConfig:
        """The configuration that `to_json` wrote. Unknown or missing keys and wrong values are a `ValueError`."""
        try:
            fields = json.loads(text)
        except (json.JSONDecodeError, TypeError, RecursionError) as error:
            raise ValueError(f"config is not valid JSON: {error}") from None
        known = {field.name for field in dataclasses.fields(cls)}
        check(
            isinstance(fields, dict) and set(fields) == known,
            f"config must be a JSON object with the keys {sorted(known)}",
        )
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"config: {error}") from None
