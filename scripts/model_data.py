"""Write the data of mfcli.models that come from timm: ImageNet's class names, those of its `ImageNetInfo`.

python scripts/model_data.py
"""

import csv
import gzip
import io

from timm.data import ImageNetInfo

from mfcli.models.labels import IMAGENET_FILE

LISTS = {"imagenet-1k": "in1k", "imagenet-22k": "in21k"}
"""Our names of timm's class lists; its "imagenet-22k" has the 21,841 classes of these checkpoints."""


def list_classes() -> list[tuple[str, str, str]]:
    """Return WordNet id, name and lists of every ImageNet class, sorted by id, as the heads of all lists are."""
    infos = {ours: ImageNetInfo(theirs) for theirs, ours in LISTS.items()}
    rows: dict[str, tuple[str, list[str]]] = {}
    for ours, info in infos.items():
        wnids = info.label_names()
        if wnids != sorted(wnids):
            raise ValueError(f"timm's list for {ours} is not sorted by WordNet id")
        for wnid in wnids:
            rows.setdefault(wnid, (info.label_name_to_description(wnid), []))[1].append(ours)
    return [(wnid, name, " ".join(lists)) for wnid, (name, lists) in sorted(rows.items())]


def format_classes() -> str:
    """Return every ImageNet class as tab-separated text with a header."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([("wnid", "name", "lists"), *list_classes()])
    return text.getvalue()


def main() -> None:
    """Write the file."""
    IMAGENET_FILE.write_bytes(gzip.compress(format_classes().encode(), mtime=0))


if __name__ == "__main__":
    main()
