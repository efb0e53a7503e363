"""Writes test/goldens/evaluation/: pictures.safetensors, a few deterministic pictures and what Pillow's bicubic filter makes of some; scores.json, the
scores of those pictures by scripts/reference/evaluation_scores.py with the random encoders in test/goldens/encoders; and bootstrap.json, intervals
and p-values by numpy and scipy. Run from the repository's root, after encoders.py (it needs scipy too):

    python scripts/goldens/evaluation.py
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy
import scipy.stats
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "reference"))
import evaluation_scores  # noqa: E402

GOLDENS = ROOT / "test" / "goldens"
OUT = GOLDENS / "evaluation"
OUT.mkdir(exist_ok=True)
random = numpy.random.default_rng(11)
tensors = {}


def picture(h, w, base):
    """Coarse colours around `base` with some grain: contrasts that a small random encoder sees."""
    coarse = (base + random.integers(-200, 200, (5, 6, 3))).clip(0, 255).astype(numpy.uint8)
    smooth = numpy.asarray(Image.fromarray(coarse).resize((w, h), Image.BICUBIC)).astype(int)
    return (smooth + random.integers(-25, 25, smooth.shape)).clip(0, 255).astype(numpy.uint8)


PROMPTS = ["a {} on the beach", "a {} in the snow", "a purple {}"]
SUBJECTS = {"rex": "dog", "mug": "cup"}
SIZES = [(40, 52), (33, 30), (47, 29)]
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    for subject in SUBJECTS:
        base = random.integers(40, 216, 3)
        places = [("references", subject, f"{i}") for i in range(3)]
        places += [("pictures", subject, f"{p + 1:02d}", f"{i}") for p in range(len(PROMPTS)) for i in range(2)]
        for n, place in enumerate(places):
            pixels = picture(*SIZES[n % 3], base)
            path = folder.joinpath(*place).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            tensors["/".join(place)] = torch.from_numpy(pixels.copy())
    cases = []
    encoders = GOLDENS / "encoders"
    for dino, clip, protocol in (
        ("vit-tiny", "clip-tiny", "dreambench"),
        ("dinov2-tiny", None, "dreambench"),
        (None, "clip-legacy-tiny", "customconcept101"),
    ):
        judges = (
            dino and evaluation_scores.Dino(encoders / dino),
            clip and evaluation_scores.Clip(encoders / clip),
        )
        scores, photographs = {}, {}
        for subject, noun in SUBJECTS.items():
            own = folder / "pictures" / subject
            scores[subject], photographs[subject] = evaluation_scores.score(
                evaluation_scores.pictures_of(folder / "references" / subject),
                [evaluation_scores.pictures_of(own / f"{p + 1:02d}") for p in range(len(PROMPTS))],
                [t.replace("{}", noun) for t in PROMPTS],
                *judges,
                protocol,
            )
        cases.append(dict(dino=dino, clip=clip, protocol=protocol, scores=scores, photographs=photographs))
(OUT / "scores.json").write_text(json.dumps(dict(prompts=PROMPTS, subjects=SUBJECTS, cases=cases), indent=1) + "\n")

source = tensors["references/rex/0"]
for w, h in ((14, 11), (97, 40), (52, 101), (13, 40)):
    resized = numpy.array(Image.fromarray(source.numpy()).resize((w, h), Image.BICUBIC))
    tensors[f"resized/{w}x{h}"] = torch.from_numpy(resized)
save_file(tensors, OUT / "pictures.safetensors")

# Bootstrap: by numpy over given resamples, and by scipy's own with so many that its chance is small.
n = 12
a = random.normal(0.72, 0.05, n)
b = a - random.normal(0.02, 0.03, n)
indices = random.integers(0, n, (400, n))


def interval(means):
    return numpy.percentile(means, [2.5, 97.5]).tolist()


difference = (a - b)[indices].mean(axis=1)
below, above = ((difference <= 0).sum() + 1) / 401, ((difference >= 0).sum() + 1) / 401
by_scipy = scipy.stats.bootstrap(
    (a, b), lambda x, y, axis: (x - y).mean(axis=axis), paired=True, vectorized=True, method="percentile",
    n_resamples=99_999, rng=numpy.random.default_rng(3), batch=10_000,
)
alone = scipy.stats.bootstrap(
    (a,), numpy.mean, method="percentile", n_resamples=99_999, rng=numpy.random.default_rng(4), batch=10_000
)
sampled = by_scipy.bootstrap_distribution
(OUT / "bootstrap.json").write_text(
    json.dumps(
        dict(
            a=a.tolist(),
            b=b.tolist(),
            indices=indices.tolist(),
            mean=dict(value=a.mean(), interval=interval(a[indices].mean(axis=1))),
            difference=dict(value=(a - b).mean(), interval=interval(difference), p=float(min(1, 2 * min(below, above)))),
            scipy=dict(
                mean=[float(alone.confidence_interval.low), float(alone.confidence_interval.high)],
                difference=[float(by_scipy.confidence_interval.low), float(by_scipy.confidence_interval.high)],
                p=float(2 * min((sampled <= 0).mean(), (sampled >= 0).mean())),
            ),
        )
    )
    + "\n"
)
