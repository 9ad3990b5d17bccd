"""Fine-tune a trained model on a folder of pictures, first its head, then all of it:
python examples/fine_tune.py MODEL photos/ [EPOCHS]

MODEL is a file, a folder, or a name on the Hugging Face Hub. From the command line:
cvit train photos/ --init MODEL --preset probe && cvit train photos/ --init runs/photos --preset finetune
"""

import sys

import cvit


def main(model, folder, epochs=None):
    epochs = epochs and int(epochs)
    probe = cvit.fit(folder, init=model, preset="probe", epochs=epochs)  # features are computed once
    print(f"the head alone: {probe.results.validation_accuracy:.1%} ({probe.folder})")
    tuned = cvit.fit(folder, init=probe.folder, preset="finetune", epochs=epochs)
    print(f"the whole model: {tuned.results.validation_accuracy:.1%} ({tuned.folder})")
    last = cvit.fit(folder, init=probe.folder, train_blocks=1, epochs=epochs)  # a frozen front costs no backward
    print(f"the last block: {last.results.validation_accuracy:.1%} ({last.folder})")


if __name__ == "__main__":
    main(*sys.argv[1:])
