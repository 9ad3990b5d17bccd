"""A model as an ONNX file (https://onnx.ai), for onnxruntime and others: `save`.

    images    (N, C, height, width), of the model's dtype; N is free          in
    logits    (N, classes), or (N, T, classes) with pool="none"               out, first; not there without classes
    features  (N, D), or (N, T, D): what `ViT.features` gives                 out

Weights are initializers, matrices (in, out) by the layout's names. The file's metadata has what cvit's own file has,
under the same keys: "cvit.config", "cvit.preprocessing" (JSON objects), "cvit.classes" (a JSON list of names),
"cvit.origin" and "cvit.precision"; onnxruntime gives it as `session.get_modelmeta().custom_metadata_map`. cvit does not
read the file back.

Of a model of "bf16", too, weights, inputs and results are float32: a graph says what is computed, and whoever runs it
chooses in what (OpenVINO has a hint for bfloat16, other bits than cvit's).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np

from ..base.errors import check
from ..base.files import replacing
from ..base.numbers import shown
from ..base.version import VERSION
from ..model.program import program_of
from ..model.vit import ViT
from .checkpoint import notes_of
from .onnx_graph import FEATURES, IMAGES, IR_VERSION, LOGITS, OPSET, compute
from .onnx_nodes import Graph

MOST_BYTES = (1 << 31) - 1  # of a file: Protocol Buffers have no more in a message
GRAPH_BYTES = 1 << 24  # room in it for all that is no initializer: nodes and metadata


def onnx_package() -> ModuleType:
    """The module `onnx`; a `ModuleNotFoundError` names the extra."""
    try:
        import onnx
        import onnx.numpy_helper
    except ModuleNotFoundError:
        raise ModuleNotFoundError('an ONNX file needs onnx: pip install "cvit-cpu[onnx]"') from None
    return onnx


def save(path: str | os.PathLike, model: ViT) -> None:
    """Write `model` to `path`, which must end in .onnx.

    Results agree with `ViT.forward` and `ViT.features` up to rounding. The graph has opset 17 and the dtype of the
    model.

    Raises
    ------
    ModuleNotFoundError
        onnx is missing: it is the extra "onnx".
    ValueError
        The model has 2 GiB or more, which an ONNX file cannot hold; or it is a float64 model with the exact GELU, for
        which onnxruntime has no operator. Nothing is written then.
    OSError
        As `base.files.replacing`.
    """
    onnx = onnx_package()
    path = Path(path)
    check(path.suffix == ".onnx", f"a file of names 'onnx' must end in .onnx, got {shown(str(path))}")
    config = model.config
    _check_size(model.weights.nbytes)
    exact = "gelu_erf" in (config.activation, config.pre_logits_activation if config.pre_logits else "")
    check(
        model.dtype == np.float32 or not exact,
        "a float64 model with the activation 'gelu_erf' cannot be written as ONNX, since onnxruntime computes erf in "
        "float32 alone: give it float32 weights, as cvit.load(path, dtype='float32') does",
    )
    content = _document(onnx, model).SerializeToString()
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _check_size(nbytes: int) -> None:
    """Raise for initializers of so many bytes, unless they fit into a file."""
    check(
        nbytes <= MOST_BYTES - GRAPH_BYTES,
        f"the model's weights must have at most {MOST_BYTES - GRAPH_BYTES:,} bytes for an ONNX file, got {nbytes:,}; "
        "cvit's own file has no such limit",
    )


def _document(onnx: ModuleType, model: ViT):
    """The model as onnx's ModelProto."""
    config, helper = model.config, onnx.helper
    graph = Graph(onnx, model.layout, model.weights)
    outputs = compute(graph, program_of(config), config.dist_head)
    _check_size(graph.nbytes)
    for name, value in outputs:
        graph.nodes.append(helper.make_node("Identity", [value], [name], name=name))
    kind = helper.np_dtype_to_tensor_dtype(model.dtype)
    rows = ("N", config.tokens) if config.pool == "none" else ("N",)
    width = config.pre_logits or (config.width if config.dist_head else config.pooled_width)
    widths = {LOGITS: config.classes, FEATURES: width}
    described = helper.make_graph(
        graph.nodes,
        "vit",
        [helper.make_tensor_value_info(IMAGES, kind, ("N", config.channels, *config.image_size))],
        [helper.make_tensor_value_info(name, kind, (*rows, widths[name])) for name, _ in outputs],
        list(graph.initializers.values()),
    )
    document = helper.make_model(
        described,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="cvit",
        producer_version=VERSION,
        doc_string=f"A Vision Transformer: {config}",
    )
    helper.set_model_props(document, {"cvit.version": VERSION, **notes_of(model)})
    return document
