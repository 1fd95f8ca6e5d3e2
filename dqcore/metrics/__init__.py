"""Measures of distortion, of rate and use of the codebook, of rank correlation and of sets of images."""

from dqcore.metrics.coding import bits_per_pixel, code_usage, codes_per_image, entropy_bits_per_pixel, perplexity
from dqcore.metrics.distortion import ms_ssim, psnr, round_to_8bit, similarities, ssim
from dqcore.metrics.frechet import frechet_distance
from dqcore.metrics.intervals import Interval, interval
from dqcore.metrics.rank import spearman

__all__ = [
    "Interval",
    "bits_per_pixel",
    "code_usage",
    "codes_per_image",
    "entropy_bits_per_pixel",
    "frechet_distance",
    "interval",
    "ms_ssim",
    "perplexity",
    "psnr",
    "round_to_8bit",
    "similarities",
    "spearman",
    "ssim",
]
