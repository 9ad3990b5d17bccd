"""Weights from the Hugging Face Hub: the few files of a repository that are read, in huggingface_hub's own cache.

So HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and a login mean what they mean to every other library, and what
another one has downloaded is not downloaded again. The package is optional and imported when it is needed.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ..base.errors import check, short
from ..base.numbers import shown
from .folder import choose_json, choose_weights
from .reading import read_json
from .safetensors_file import INDEX, shards_of


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder in the cache that holds a repository's config, preprocessor's config and weights.

    The weights are those that `folder.choose_weights` takes, and the last to come: a folder that has them has all.
    Without a network the folder is what the cache has of this revision, if that is complete.

    Parameters
    ----------
    name : str
        "owner/name" of a model's repository.
    revision : str, optional
        A branch, tag or commit; None: main.

    Raises
    ------
    ModuleNotFoundError
        huggingface_hub is not installed.
    ValueError
        There is no such repository or revision, or it has no weights that are read here (only pickles, say).
    PermissionError
        The repository is gated, and this login has no access yet.
    OSError
        The Hub cannot be reached and the cache has not all of it, or a download broke off. What is half-written is
        never taken for a file.
    """
    hub = _huggingface_hub()
    revision = revision or "main"
    label = f"{name}@{revision}"
    try:
        listing = hub.HfApi().model_info(name, revision=revision, timeout=30).siblings or []
    except Exception as error:  # of whatever library of HTTP huggingface_hub is built on
        _raise_if_refused(hub, error, name, revision)
        return _cached(hub, name, revision, error)
    names = [file.rfilename for file in listing if "/" not in file.rfilename]
    weights = choose_weights(names, label)
    wanted = choose_json(names)
    if weights == INDEX:
        index = _download(hub, name, revision, INDEX)
        wanted += sorted(set(shards_of(read_json(index), f"{label}/{INDEX}").values()))
    folders = {_download(hub, name, revision, file).parent for file in [*wanted, weights]}
    if len(folders) != 1:
        raise OSError(f"{label} was changed on the Hub while it was downloaded; try again")
    return folders.pop()


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ModuleNotFoundError:
        message = 'weights from the Hugging Face Hub need huggingface_hub: pip install "cvit-cpu[hub]"'
        raise ModuleNotFoundError(message) from None
    return huggingface_hub


def _download(hub: ModuleType, name: str, revision: str, file: str) -> Path:
    """One file in the cache. huggingface_hub compares its size, and renames it when it is whole."""
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision))
    except Exception as error:
        _raise_if_refused(hub, error, name, revision)
        raise OSError(f"{name}@{revision}: {shown(file)} could not be downloaded: {_reason(error)}") from error


def _raise_if_refused(hub: ModuleType, error: Exception, name: str, revision: str) -> None:
    """Raise what an answer of the Hub means: no such repository or revision, or no access."""
    if isinstance(error, hub.utils.HFValidationError):
        raise ValueError(f"{name} is no name of a repository: {_reason(error)}") from None
    if isinstance(error, hub.utils.GatedRepoError):
        raise PermissionError(
            f"{name} is gated: accept its terms at {hub.constants.ENDPOINT}/{name} "
            "and log in (hf auth login, or HF_TOKEN)"
        ) from None
    if isinstance(error, hub.utils.RepositoryNotFoundError):
        raise ValueError(
            f"{name} is neither a path here nor a model on the Hub ({hub.constants.ENDPOINT}); "
            "a private one needs a login (hf auth login, or HF_TOKEN)"
        ) from None
    if isinstance(error, hub.utils.RevisionNotFoundError):
        raise ValueError(f"{name} has no revision {shown(revision)} on the Hub") from None


def _cached(hub: ModuleType, name: str, revision: str, reason: Exception) -> Path:
    """The folder that the cache has of a revision, if its weights are complete; else the `OSError` for `reason`."""
    problem = "the cache has nothing of it"
    try:
        folder = Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=["config.json"], local_files_only=True)
        )
        weights = choose_weights([path.name for path in folder.iterdir() if path.exists()], str(folder))
        files = shards_of(read_json(folder / INDEX), str(folder / INDEX)).values() if weights == INDEX else []
        missing = [file for file in set(files) if not (folder / file).exists()]
        check(not missing, f"{len(missing)} of its files are missing")
        return folder
    except (hub.utils.LocalEntryNotFoundError, FileNotFoundError):
        pass
    except ValueError as error:
        problem = f"the cache has only part of it: {short(error, 200)}"
    raise OSError(f"{name}@{revision} cannot be had: {_reason(reason)}; and {problem}") from reason


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return short(text or type(error).__name__, 300)
