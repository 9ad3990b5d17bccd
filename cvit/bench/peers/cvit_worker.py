"""cvit in a process of its own, exactly as its peers; it also measures what the machine can do."""

import numpy as np
from serve import Worker, serve


class CvitWorker(Worker):
    name = "cvit"

    def setup(self, threads, variant):
        import cvit

        cvit.set_num_threads(threads)
        self.cvit, self.threads, self.precision = cvit, threads, variant
        # Of a model in float32 nothing is said: bench/turns.py runs builds that knew nothing else.
        self.options = {} if variant == "f32" else {"precision": variant}
        return cvit.__version__

    def load(self, config, weights, images, labels, tasks, optimizer, lr):
        cvit = self.cvit
        fields = {name: value for name, value in config.items() if name != "tokens"}
        self.config = cvit.ViTConfig(**fields)
        self.images, self.labels = images, labels
        layout = cvit.Layout.of(self.config)
        self.model = cvit.ViT(self.config, layout.pack(weights), **self.options)
        make_optimizer = {"sgd": cvit.SGD, "adamw": cvit.AdamW}[optimizer]
        self.optimizer = make_optimizer(self.model, lr=lr, weight_decay=0)
        if "forward" in tasks:
            self.inference = cvit.ViT(self.config, layout.pack(weights), **self.options)
            self.inference.freeze()

    def logits(self):
        return self.inference.forward(self.images)

    def forward_step(self):
        self.inference.forward(self.images)

    def gradients(self):
        loss, grad = self.model.loss_and_grad(self.images, self.labels)
        return loss, self.model.layout.views(grad)

    def train_step(self):
        loss, grad = self.model.loss_and_grad(self.images, self.labels)
        self.optimizer.step(self.model.weights, grad)
        return loss

    def do_peak(self, seconds):
        """FLOP/s that this many threads reach with what the precision's products are made of, `of`; and the instruction
        set in use."""
        from cvit.engine import team

        peak = team.measure_peak("float32", self.threads, seconds, **self.options)
        if not hasattr(team, "peak_of"):  # a build that bench/turns.py runs, from before there was bfloat16
            return {"isa": self.cvit.get_isa(), "of": "float32 FMA", "peak": peak}
        return {"isa": team.isa_of(self.precision), "of": team.peak_of(self.precision), "peak": peak}

    def do_bandwidth(self, seconds):
        """Bytes/s that this many threads read and write."""
        from cvit.engine import team

        return {"bandwidth": team.measure_bandwidth(self.threads, seconds)}

    def do_idle(self, count):
        """Seconds of training steps without their kernels; the optimizer's is as small as can be, one that updates a
        few values."""
        cvit = self.cvit
        self.gradients()
        (engine,) = self.model._engines.values()
        tiny = cvit.ViT(
            cvit.ViTConfig(image_size=2, patch_size=2, channels=1, width=1, depth=0, heads=1, hidden=1, classes=2),
            **self.options,
        )
        optimizer, gradient = cvit.SGD(tiny), np.zeros_like(tiny.weights)

        def step():
            self.model.loss_and_grad(self.images, self.labels)
            optimizer.step(tiny.weights, gradient)

        engine.idle = True
        try:
            return {"times": self.timed(step, count, count // 10)}
        finally:
            engine.idle = False

    def do_plan(self, batch):
        """Bytes that `ViT.plan` says a training step and a forward pass need."""
        return {task: self.model.plan(batch, mode).bytes for task, mode in (("train", "train"), ("forward", "infer"))}


if __name__ == "__main__":
    serve(CvitWorker())
