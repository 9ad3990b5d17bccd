"""`python -m cvit.families.census`: the table of `report.py`; exits with 1 if a model is read and computed wrongly.

It needs torch, timm, torchvision and transformers: `pip install torch==2.13.0`, `pip install --no-deps timm
torchvision==0.28.0`, `pip install transformers huggingface_hub pyyaml pillow`.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys

from ...engine import runtime


def main(arguments: list[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m cvit.families.census", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names that fit, such as 'eva02*'")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="every verdict, as JSON")
    form.add_argument("--markdown", action="store_true", help="the table of docs/families.md")
    given = parser.parse_args(arguments)
    try:
        import torch

        from . import hf_models, timm_models, torchvision_models
    except ImportError as error:
        parser.exit(2, f"{error}\n{(__doc__ or '').partition('It ')[2]}")
    from . import report
    from .compare import judge

    torch.set_num_threads(1)
    runtime.set_num_threads(1)
    every = [*timm_models.candidates(), *torchvision_models.candidates(), *hf_models.candidates()]
    chosen = [one for one in every if fnmatch.fnmatchcase(one.name, given.only)]
    if not chosen:
        parser.error(f"no name fits {given.only!r}")
    verdicts = []
    for number, candidate in enumerate(chosen, 1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(chosen)} {candidate.name[:60]:60}", end="", file=sys.stderr, flush=True)
        verdicts.append(judge(candidate))
    if sys.stderr.isatty():
        print("\r" + " " * 80 + "\r", end="", file=sys.stderr)
    form_of = report.as_json if given.json else report.markdown if given.markdown else report.text
    print(form_of(verdicts))
    return int(any(one.verdict == "wrong" for one in verdicts))


if __name__ == "__main__":
    sys.exit(main())
