"""Cards by the classes that hubs' own clients read them with.

In: model|dataset and the path of a README.md, any number of pairs. Out: a line of JSON with the
headers. Fails if a header does not parse, if it holds other keys than the classes know, or if a
table of the text has rows of different widths. Where the library `datasets` is installed, a
dataset's folder is loaded by its card, and the rows of each split are printed with it.
"""

import json
import os
import re
import sys
import tempfile

from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.repocard_data import DatasetCardData, ModelCardData


def cells(line):
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def check_text(path, text):
    lines, width = text.splitlines(), None
    fences = sum(line.startswith("```") for line in lines)
    assert fences % 2 == 0, f"{path}: a code block without an end"
    for number, line in enumerate(lines, 1):
        if not line.startswith("|"):
            width = None
            continue
        width = width or cells(line)
        assert cells(line) == width, f"{path}: line {number} has {cells(line)} cells of {width}"


def rows(folder):
    try:
        import datasets
    except ImportError:
        print("SKIP: datasets is not installed; the folder is not loaded", file=sys.stderr)
        return None
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset(folder, cache_dir=cache)
        return {split: len(part) for split, part in loaded.items()}


def main():
    out = []
    for kind, path in zip(sys.argv[1::2], sys.argv[2::2]):
        card_class, data_class = {
            "model": (ModelCard, ModelCardData),
            "dataset": (DatasetCard, DatasetCardData),
        }[kind]
        card = card_class.load(path, ignore_metadata_errors=False)
        assert isinstance(card.data, data_class), type(card.data)
        data = card.data.to_dict()
        again = card_class(str(card)).data.to_dict()
        assert data == again, (data, again)
        check_text(path, card.text)
        if kind == "dataset":
            data["rows"] = rows(os.path.dirname(path))
        out.append(data)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
