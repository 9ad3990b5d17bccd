"""The census: every name of timm and torchvision and every class of transformers that `cvit.families` knows, built with
random numbers and compared with what the engine computes of it. `python -m cvit.families.census` prints it.

    peers.py       the other libraries, as they are imported beside a CPU build of torch
    compare.py     `Candidate`, an original and what is asked of it; `judge`, its verdict
    timm_models.py, torchvision_models.py, hf_models.py (and hf_cases.py, their options)      the candidates
    report.py      the table, as text, as Markdown and as JSON

It is the only part of cvit that imports torch, and nothing imports it but the command and the tests.
"""
