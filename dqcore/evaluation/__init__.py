"""Evaluation: how close reconstructions come, how many codes and bits they take, how well the codebook is used."""

from dqcore.evaluation.coding import bits_per_pixel, code_usage, codes_per_image, entropy_bits_per_pixel, perplexity
from dqcore.evaluation.distortion import psnr, ssim
from dqcore.evaluation.rank import spearman
from dqcore.evaluation.tokenizer import Evaluation, evaluate_tokenizer

__all__ = [
    "Evaluation",
    "bits_per_pixel",
    "code_usage",
    "codes_per_image",
    "entropy_bits_per_pixel",
    "evaluate_tokenizer",
    "perplexity",
    "psnr",
    "spearman",
    "ssim",
]
