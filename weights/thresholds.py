"""Write beside the bundled artifact when it should say that it does not know.

    python weights/thresholds.py tiny-imagenet-200/train --holdout 5

By the pictures that the training held out, which also chose crop_pct and the temperature: a curve of probabilities and
bounds on the error, see `mfcli.models.abstention`. build.py removes it. There is no distance: on the held-out pictures
against photos of 800 other classes, the largest probability has an AUROC of 0.70, Mahalanobis's distance of 0.67.
"""

import argparse
from pathlib import Path

import numpy as np
from pictures import Samples, split

from mfcli.artifact.file import update_sidecar
from mfcli.errors import MfError
from mfcli.inference.model_loading import load_predictor
from mfcli.inference.predictor import Predictor
from mfcli.models.abstention import Thresholds, list_error_bounds

DIGITS = 4


def fit_thresholds(predictor: Predictor, samples: Samples, wnids: list[str]) -> Thresholds:
    """Return the thresholds of a model.

    Args:
        predictor: the model.
        samples: pictures that it was not trained on.
        wnids: of their classes.

    Raises:
        SystemExit: a picture fails.
    """
    results = list(predictor.stream(path for path, _ in samples))
    if failed := [result.input for result in results if result.error]:
        raise SystemExit(f"{len(failed)} pictures failed, such as {failed[0]}")
    tops = [result.predictions[0] for result in results]
    are_right = [top.wnid == wnids[target] for top, (_, target) in zip(tops, samples, strict=True)]
    points = list_error_bounds(np.array([top.prob for top in tops]), np.array(are_right))
    return Thresholds(tuple((round(prob, DIGITS), round(bound, DIGITS)) for prob, bound in points), None)


def main(argv: list[str] | None = None) -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that was trained on")
    parser.add_argument("--holdout", type=int, default=5, help="pictures of each class that no step was trained on")
    options = parser.parse_args(argv)
    _, samples, wnids = split(options.data, options.holdout)
    try:
        predictor = load_predictor("bundled", confidence=None)
        thresholds = fit_thresholds(predictor, samples, wnids)
        update_sidecar(predictor.artifact.path, thresholds=thresholds.to_json())
    except MfError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}") from error
    for max_error in (0.05, 0.1, 0.2, 0.3):
        print(f"at most {max_error:.0%} wrong: probability {thresholds.find_prob(max_error)}")


if __name__ == "__main__":
    main()
