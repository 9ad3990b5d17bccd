"""Emoji of Noto as folders by category: python examples/emoji.py emoji-datasource-google-16.0.0.tgz emoji/

The archive is what `npm pack emoji-datasource-google@16.0.0` brings: pictures of 64 x 64, Apache-2.0. Skin tones are
variants of one emoji: they go to the same part, training or validation, as the emoji, so that none leaks.
Then: cvit train emoji/
"""

import json
import sys
import tarfile
import zlib
from pathlib import Path


def main(archive, out, share=0.2):
    with tarfile.open(archive) as tar:
        emoji = json.load(tar.extractfile("package/emoji.json"))
        category = {}
        for entry in emoji:
            if entry["category"] == "Component":  # five swatches of skin colours
                continue
            variants = [entry, *entry.get("skin_variations", {}).values()]
            validation = zlib.crc32(entry["unified"].encode()) % 1000 < 1000 * share
            for variant in variants:
                category[variant["image"]] = (("train", "val")[validation], entry["category"])
        for member in tar:
            part = category.get(Path(member.name).name)
            if part is None or "/img/google/64/" not in member.name:
                continue
            place = Path(out, part[0], part[1].replace(" ", "-"), Path(member.name).name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(tar.extractfile(member).read())


if __name__ == "__main__":
    main(*sys.argv[1:])
