"""Results made up for each experiment, as the paper would have them, or turned around."""

from __future__ import annotations

#: Seeds differ by this much, so that intervals are narrow but not nothing.
JITTER = 0.001


def rows(experiment, measured):
    """The contents of the files: of each arm a function of its seed's jitter."""
    made_by = {"dqcore": "0", "commit": "abc", "torch": "2", "python": "3", "machine": "none", "threads": 1}
    return [
        {
            "experiment": experiment,
            "arm": {"name": arm, "seed": seed, "scale": "tiny", "data": "d", "options": {"steps": 2}},
            "photos": "discs",
            "made_by": made_by,
            "seconds": {"training": 60.0, "measuring": 1.0},
            "measured": make(JITTER * (seed - 1)),
        }
        for arm, make in measured.items()
        for seed in range(3)
    ]


def evaluation(psnr, rate=0.1, codes=100, correlation=0.6):
    """What is kept of an evaluation."""
    return {
        "psnr": psnr,
        "ssim": psnr / 40,
        "bits_per_pixel": rate,
        "codes_per_image": codes,
        "rank_correlation": correlation,
    }


def budget(good):
    """The three weights; turned around, they miss the target late, and 10 is worst."""
    fine, gap = (0.5, 0.1) if good else (0.8, -1.0)

    def arm(weight):
        psnr = 22 + (gap if weight == 10 else 0)
        curves = {"fine_ratio": [[1, 0.9], [2, fine]], "budget_loss": [[1, 0.2], [2, 0.01]]}
        return lambda e: {
            "training": curves,
            "validation": curves,
            "fine_ratio": fine + e,
            "settled": (0.1 if good else 0.9) + e,
            "free": evaluation(psnr + e),
            "equal": evaluation(psnr + e),
        }

    return {
        "feature-r0.5-lambda1": arm(1),
        "feature-r0.5": arm(10),
        "feature-r0.5-lambda100": arm(100),
    }


def ratios(good):
    """Curves above or below those of fixed lengths and of random routing."""
    sign = 1 if good else -1
    off = 0 if good else 0.1

    def arm(psnr, rate, codes, correlation=None, target=True):
        def make(e):
            about = {"fine_ratio": 0.5 + off + e, "off_target": off + e, "target": [0.5]} if target else {}
            follows = None if correlation is None else correlation + e
            return {**about, "equal": evaluation(psnr + e, rate, codes, follows)}

        return make

    return {
        "feature-r0.3": arm(22 + sign, 0.06, 160, 0.5 * sign),
        "feature-r0.5": arm(22 + 2 * sign, 0.08, 200, 0.5 * sign),
        "random-r0.5": arm(22, 0.08, 200, 0.0),
        "triple-0.3-0.3": arm(22 + sign, 0.05, 150, 0.5 * sign),
        "vqgan-f16": arm(21.5, 0.03, 100, target=False),
        "vqgan-f8": arm(22.5, 0.12, 400, target=False),
    }


def maps(good):
    """Correlations above or below a half."""

    def arm(value):
        both = lambda e: {"all regions": value + e, "mean of photos": value + e}  # noqa: E731
        return lambda e: {"scores": both(e), "grain": both(e)}

    found = {"feature": 0.7, "gain": 0.8, "entropy": 0.4, "random": 0.0}
    return {f"{router}-r0.5": arm(value if good else value / 2) for router, value in found.items()}


def router(good):
    """Gain before feature before entropy before random, or the other way round."""
    sign = 1 if good else -1

    def arm(psnr):
        return lambda e: {key: evaluation(psnr + e, rate) for key, rate in (("0.3", 0.1), ("0.5", 0.2), ("0.7", 0.3))}

    found = {"feature": 22.0, "gain": 22 + sign, "entropy": 22 - sign / 2, "random": 22 - sign}
    arms = {f"{name}-r0.5": arm(psnr) for name, psnr in found.items()}
    return arms | {f"feature-r{ratio}": arm(22.1 if good else 25) for ratio in (0.3, 0.7)}


def learning(good):
    """The gain router ahead early and late, or behind."""
    sign = 1 if good else -1

    def arm(value):
        def make(e):
            points = {name: [[1, value / 2 + e], [2, value + e]] for name in ("errors", "entropy", "psnr")}
            first, last = ({name: both[at][1] for name, both in points.items()} for at in (0, 1))
            return {**points, "fine_ratio": [[1, 0.9], [2, 0.5]], "first": first, "last": last | {"fine_ratio": 0.5}}

        return make

    found = {"feature": 0.5, "gain": 0.5 + 0.3 * sign, "entropy": 0.5 - 0.1 * sign, "random": 0.0}
    return {f"{router}-r0.5{end}": arm(value) for router, value in found.items() for end in ("", "-adversarial")}


def _curves(last):
    return {name: [[1, 5.0], [2, last]] for name in ("loss", "content_loss", "position_loss", "bits_per_image")}


def priors(good):
    """The paper's order of designs, or the other way round."""
    sign = 1 if good else -1

    def arm(place):
        return lambda e: {
            "bits": 500 + 10 * sign * place + e,
            "frechet": 50 + sign * place + e,
            "images_per_second": 5.0 + e,
            "parameters": 1000,
            "training": _curves(2.0),
            "validation": _curves(2.0),
        }

    return {"dqtransformer": arm(0), "raster": arm(1), "raster-dynamic": arm(2), "global-local": arm(3)}


def layers(good):
    """Content layers matter, or position layers do."""
    sign = 1 if good else -1

    def arm(place):
        return lambda e: {
            "bits": 500 + 10 * sign * place + e,
            "position_loss": (0.02 if good else 1.0) + e / 10,
            "rise": (0.001 if good else 0.2) + e / 10,
            "parameters": 1000,
            "training": _curves(0.02),
            "validation": _curves(2.0),
        }

    return {"dqtransformer-2-6": arm(0), "dqtransformer-4-4": arm(1), "dqtransformer-6-2": arm(2)}


MADE_UP = {
    "budget": budget,
    "ratios": ratios,
    "maps": maps,
    "router": router,
    "learning": learning,
    "priors": priors,
    "layers": layers,
}
