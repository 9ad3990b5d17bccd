"""The benchmark's model in OpenVINO, forward only: the graph is written with its opset, in float32; with
`--variant bf16` OpenVINO is told to compute in bfloat16."""

import numpy as np
from serve import Worker, serve


def make_graph(openvino, config, weights, N):
    """The model as an OpenVINO model for batches of N images."""
    from openvino import opset13 as op

    D, H, T, P, C = (config[name] for name in ("width", "heads", "tokens", "patch_size", "channels"))
    constant = lambda array: op.constant(np.ascontiguousarray(array))
    ints = lambda *numbers: op.constant(np.array(numbers, np.int64))
    weight = lambda name: constant(weights[name])
    linear = lambda x, name: op.add(op.matmul(x, weight(f"{name}.weight"), False, False), weight(f"{name}.bias"))

    def norm(x, name):
        xhat = op.mvn(x, ints(-1), True, config["eps"], "inside_sqrt")
        return op.add(op.multiply(xhat, weight(f"{name}.weight")), weight(f"{name}.bias"))

    def heads(x):
        """(N, T, D) to (N, H, T, D/H)."""
        return op.transpose(op.reshape(x, ints(N, T, H, D // H), False), ints(0, 2, 1, 3))

    images = op.parameter([N, C, *config["image_size"]], np.float32)
    kernel = constant(weights["patch_embed.weight"].T.reshape(D, C, P, P))
    x = op.convolution(images, kernel, [P, P], [0, 0], [0, 0], [1, 1])
    x = op.transpose(op.reshape(x, ints(N, D, T - 1), False), ints(0, 2, 1))
    x = op.add(x, weight("patch_embed.bias"))
    x = op.concat([constant(np.broadcast_to(weights["cls_token"], (N, 1, D))), x], 1)
    x = op.add(x, weight("pos_embed"))
    for i in range(config["depth"]):
        block = f"blocks.{i}."
        a = norm(x, block + "norm1")
        q, k, v = (heads(linear(a, f"{block}attn.{part}")) for part in "qkv")
        a = op.scaled_dot_product_attention(q, k, v)
        a = op.reshape(op.transpose(a, ints(0, 2, 1, 3)), ints(N, T, D), False)
        x = op.add(x, linear(a, block + "attn.proj"))
        h = op.gelu(linear(norm(x, block + "norm2"), block + "mlp.fc1"), "tanh")
        x = op.add(x, linear(h, block + "mlp.fc2"))
    cls = op.gather(x, op.constant(np.array(0, np.int64)), op.constant(np.array(1, np.int64)))
    return openvino.Model([linear(norm(cls, "norm"), "head")], [images], "vit")


class OpenVINOWorker(Worker):
    name = "openvino"
    tasks = ("forward",)

    def setup(self, threads, variant):
        import openvino

        self.openvino, self.threads, self.hint = openvino, threads, variant or "f32"
        return openvino.__version__.split("-")[0]

    def load(self, config, weights, images, labels, tasks, optimizer, lr):
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.hint,
            "INFERENCE_NUM_THREADS": self.threads,
        }
        model = make_graph(self.openvino, config, weights, len(images))
        core = self.openvino.Core()
        compiled = core.compile_model(model, "CPU", properties)
        self.request, self.images = compiled.create_infer_request(), images
        # A hint is no order: the compiled model says what it runs, the device what it has units for.
        self.precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if self.hint == "bf16" and self.precision != "bf16":
            self.remark = f"told to compute in bf16, OpenVINO runs in {self.precision}"
        elif self.hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            self.remark = "OpenVINO sees no bfloat16 units in this CPU, and runs bf16 on others"

    def logits(self):
        return self.request.infer([self.images], share_inputs=True)[0]

    def forward_step(self):
        self.request.infer([self.images], share_inputs=True, share_outputs=True)


if __name__ == "__main__":
    serve(OpenVINOWorker())
