"""A ViT among scikit-learn's tools: cross-validated, searched, and as features before a linear classifier.

python examples/in_a_pipeline.py --epochs 30
"""

import argparse

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline

import cvit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--images", type=int, default=1797, help="how many of the 1,797 digits")
args = parser.parse_args()

digits = load_digits()
images, names = digits.images[: args.images], [f"a {digit}" for digit in digits.target[: args.images]]
train, test, train_names, test_names = train_test_split(images, names, test_size=0.2, stratify=names, random_state=0)

classifier = cvit.ViTClassifier(epochs=args.epochs, augment="affine", random_state=0)
scores = cross_val_score(classifier, train, train_names, cv=2)
print(f"ViT, cross-validated: {scores.mean():.1%}")

search = GridSearchCV(classifier, {"learning_rate": [1e-3, 2e-3]}, cv=2).fit(train, train_names)
print(f"ViT, on unseen images: {search.score(test, test_names):.1%} with {search.best_params_}")
print(f"the first one is {search.predict(test[:1])[0]}: {search.predict_proba(test[:1]).max():.1%} sure")

# The features of the trained model, whose images are grey and 8 x 8, with 16 for white, as values from -1 to 1.
features = cvit.ViTFeatures(search.best_estimator_.model_, white=16)
linear = make_pipeline(features, LogisticRegression(max_iter=1000)).fit(train, train_names)
print(f"linear classifier on its features: {linear.score(test, test_names):.1%}")
