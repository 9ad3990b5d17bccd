"""Embed a folder of pictures and find those most like one: python examples/nearest_neighbours.py MODEL photos/ a.jpg"""

import sys

import numpy as np

import cvit
from cvit.pictures.listing import pictures_in


def main(model, folder, picture, count=5):
    model = cvit.load(model).freeze()
    names = pictures_in(folder)
    features, wanted = model.embed(folder), model.embed(picture)[0]
    alike = features @ wanted / np.linalg.norm(features, axis=1) / np.linalg.norm(wanted)  # cosines
    for index in np.argsort(-alike)[: int(count)]:
        print(f"{alike[index]:.3f}  {names[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
