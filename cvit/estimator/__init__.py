"""scikit-learn's interface: `ViTClassifier` and `ViTFeatures`, for pipelines, searches, validation and calibration.

    inputs.py      any layout of images to rows that scikit-learn checks, and back to (n, C, h, w)
    standardize.py values to zero mean and unit variance      samples.py     weighted examples, and their batches
    training.py    an epoch of training, and its model        classifier.py, features.py    the estimators

`import cvit` does not import this package, `cvit.ViTClassifier` and `cvit.ViTFeatures` do.
"""

try:
    import sklearn  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        'ViTClassifier and ViTFeatures need scikit-learn: pip install "cvit-cpu[sklearn]"'
    ) from None
from .classifier import ViTClassifier
from .features import ViTFeatures

__all__ = ["ViTClassifier", "ViTFeatures"]
