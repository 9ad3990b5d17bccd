"""`cvit convert MODEL OUT`: a model written in the names of another library, or as an ONNX graph."""

from __future__ import annotations

from pathlib import Path

from .options import MOST_EDGE, precision_option, whole
from .output import one_line

NAMES = ("cvit", "timm", "hf", "npz", "onnx")
DESCRIPTION = (
    'Write a model as another library\'s files: a folder that timm.create_model("local-dir:OUT") (--names timm) or\n'
    "transformers' from_pretrained(OUT) (--names hf) loads, an .npz file as vit_jax and big_vision write it (--names\n"
    "npz), an ONNX graph for onnxruntime (--names onnx), or cvit's own file or folder (--names cvit). Where the\n"
    "library could not compute the model, the error says why."
)
EXAMPLE = "cvit convert google/vit-base-patch16-224 vit.safetensors && cvit convert vit.safetensors vit/ --names hf"


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument("model", metavar="MODEL", help="what cvit.load takes: a file, a folder, a name on the Hub")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="a folder, or a file that ends in .safetensors, .npz or .onnx"
    )
    parser.add_argument("--names", choices=NAMES, help="whose names (default what OUT.npz or OUT.onnx says, else cvit)")
    parser.add_argument(
        "--image-size", type=whole(1, MOST_EDGE), metavar="INT", help="resample positions for another image size"
    )
    parser.add_argument(
        "--dtype", choices=("f32", "f64", "bf16"),
        help="of the weights in OUT: bf16 rounds them and halves the file (default that of MODEL, of bf16 and f16 f32)",
    )  # fmt: skip
    precision_option(parser, "that of MODEL, and kept in cvit's own files alone")


def run(args) -> None:
    """Load and write."""
    from ..formats.load import load
    from ..formats.onnx_file import onnx_package
    from ..formats.save import names_for

    names = args.names or names_for(args.out)
    if names == "onnx":
        onnx_package()  # else its absence would show after the model was loaded, or downloaded
    dtype = {None: None, "f32": "float32", "f64": "float64", "bf16": None}[args.dtype]
    model = load(args.model, image_size=args.image_size, dtype=dtype, precision=args.precision)
    half = args.dtype == "bf16"
    model.save(args.out, names, dtype="bf16" if half else None)
    stored = "bfloat16" if half else model.dtype
    print(f"{one_line(str(args.out))}: {model.layout.size:,} weights, {stored}, with names of {names}")
