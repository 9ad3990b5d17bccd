"""Train on a folder with one folder of pictures per class: python examples/train_on_a_folder.py photos/ [EPOCHS]

The same from the command line: cvit train photos/
"""

import sys

import cvit


def main(folder, epochs=None):
    done = cvit.fit(folder, epochs=epochs and int(epochs), on_epoch=print, say=print)
    print(f"{done.folder}: validation accuracy {done.results.validation_accuracy:.1%}")
    some = done.model.predict(folder, top=2)  # of all pictures in the folder; one path gives one list
    print("the first picture:", some[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
