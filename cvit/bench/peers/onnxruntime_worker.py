"""The benchmark's model in ONNX Runtime, forward only: the graph is written with the `onnx` package."""

import numpy as np
from serve import Worker, serve


def make_graph(onnx, config, weights, N):
    """The model as an ONNX file's bytes, for batches of N images.

    Linear layers are Gemm over all tokens (N·T, D), which ONNX Runtime packs once; attention is its own
    MultiHeadAttention, as its transformer optimizer would put in.
    """
    helper, nodes, initializers = onnx.helper, [], []
    D, T, P, C = config["width"], config["tokens"], config["patch_size"], config["channels"]

    def constant(name, array):
        initializers.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def op(kind, *inputs, **attributes):
        """Append a node; return the name of its output."""
        output = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def reshape(x, *shape):
        name = "shape_" + "_".join(map(str, shape))
        if name not in (tensor.name for tensor in initializers):
            constant(name, np.array(shape, np.int64))
        return op("Reshape", x, name)

    def linear(x, name):
        parts = [constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return op("Gemm", x, *parts)

    def norm(x, name):
        parts = [constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return op("LayerNormalization", x, *parts, axis=-1, epsilon=config["eps"])

    kernel = constant("patch_embed.weight", weights["patch_embed.weight"].T.reshape(D, C, P, P))
    x = op("Conv", "images", kernel, constant("patch_embed.bias", weights["patch_embed.bias"]), strides=[P, P])
    x = op("Transpose", reshape(x, N, D, T - 1), perm=[0, 2, 1])
    x = op("Concat", constant("cls_token", np.broadcast_to(weights["cls_token"], (N, 1, D))), x, axis=1)
    x = reshape(op("Add", x, constant("pos_embed", weights["pos_embed"])), N * T, D)
    for i in range(config["depth"]):
        block = f"blocks.{i}."
        a = norm(x, block + "norm1")
        q, k, v = (reshape(linear(a, f"{block}attn.{part}"), N, T, D) for part in "qkv")
        a = op("MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=config["heads"])
        x = op("Add", x, linear(reshape(a, N * T, D), block + "attn.proj"))
        h = op("Gelu", linear(norm(x, block + "norm2"), block + "mlp.fc1"), approximate="tanh")
        x = op("Add", x, linear(h, block + "mlp.fc2"))
    cls = op("Gather", reshape(x, N, T, D), constant("zero", np.array(0, np.int64)), axis=1)
    output = linear(norm(cls, "norm"), "head")

    value = lambda name, *shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    images = value("images", N, C, *config["image_size"])
    graph = helper.make_graph(nodes, "vit", [images], [value(output, N, config["classes"])], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


class ONNXRuntimeWorker(Worker):
    name = "onnxruntime"
    tasks = ("forward",)

    def setup(self, threads, variant):
        import onnx
        import onnxruntime

        self.onnx, self.ort, self.threads = onnx, onnxruntime, threads
        return onnxruntime.__version__

    def load(self, config, weights, images, labels, tasks, optimizer, lr):
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        model = make_graph(self.onnx, config, weights, len(images))
        self.session = self.ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {"images": images}

    def logits(self):
        return self.session.run(None, self.inputs)[0]

    def forward_step(self):
        self.session.run(None, self.inputs)


if __name__ == "__main__":
    serve(ONNXRuntimeWorker())
