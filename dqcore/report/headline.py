"""The numbers at the top of a report, the legend, and the table of peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dqcore.inference.measure import Evaluation
from dqcore.inference.peers import PeerNumbers
from dqcore.report.pictures import granularity_colour

__all__ = ["granularities", "headline", "peer_rows", "target_ratio"]


def target_ratio(model: Any) -> float | None:
    """Target share of fine regions; None for a tokenizer without a router."""
    ratios = getattr(model.config, "target_ratio", None)
    return None if ratios is None else float(ratios[-1])


def granularities(model: Any, evaluation: Evaluation) -> list[dict[str, str]]:
    """The legend, coarse to fine: name, accent colour, codes of a region, share of the regions."""
    strides = model.config.strides
    names = {1: ["all"], 2: ["coarse", "fine"], 3: ["coarse", "median", "fine"]}.get(
        len(strides), [f"granularity {g}" for g in range(len(strides))]
    )
    return [
        {
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*granularity_colour(g, len(strides))),
            "codes": f"{4**g} code{'s' if g else ''} for {strides[0]} × {strides[0]} pixels",
            "share": f"{evaluation.ratios[g]:.0%}",
        }
        for g, name in enumerate(names)
    ]


def headline(model: Any, evaluation: Evaluation) -> list[dict[str, str]]:
    """Name, value, unit and a remark of each number."""
    config, target, found = model.config, target_ratio(model), evaluation
    fixed = 4 ** (config.num_granularities - 1) * found.codes_per_image / _codes_per_region(found)
    similarity = f"SSIM {found.ssim:.3f}" + ("" if found.ms_ssim is None else f", MS-SSIM {found.ms_ssim:.3f}")
    aim = "of all" if target is None else f"of these photos; of the training photos {target:.0%}, on average"
    cards = [
        ("PSNR", f"{found.psnr:.2f}", "dB", f"{found.protocol}; {similarity}"),
        ("Bytes per photo", f"{found.bytes_per_image:,.0f}", "", "as written, header included"),
        (
            "Bits per pixel",
            f"{found.bits_per_pixel:.4f}",
            "",
            f"as written; {found.fixed_bits_per_pixel:.4f} uncoded, 24 in the original",
        ),
        ("Codes per photo", f"{found.codes_per_image:,.0f}", "", f"{fixed:,.0f} if all regions were fine"),
        ("Fine regions", f"{found.fine_ratio:.0%}", "", aim),
        ("Codebook in use", f"{found.usage:.0%}", "", f"of {config.codebook_size:,} codes"),
    ]
    if found.rank_correlation is not None:
        cards.append(("Codes follow detail", f"{found.rank_correlation:.2f}", "", "rank correlation, at most 1"))
    if found.lpips is not None:
        cards.append(("LPIPS", f"{found.lpips:.3f}", "", "lower is closer"))
    return [dict(zip(("name", "value", "unit", "remark"), card, strict=True)) for card in cards]


def peer_rows(peers: Sequence[PeerNumbers], num_photos: int) -> list[list[str]]:
    """The table of the tokenizer and its peers: name, PSNR, SSIM, MS-SSIM, bytes, a remark."""
    rows = []
    for peer in peers:
        remark = f"cannot be as small for {peer.too_large} of {num_photos}" if peer.too_large else ""
        if peer.left_out:
            remark = f"{remark}; " * bool(remark) + f"without {peer.left_out} of {num_photos}, too large for it"
        rows.append([peer.name, *_cells(peer.psnr, peer.ssim, peer.ms_ssim, peer.bytes_per_image), remark])
    return rows


def _cells(decibels: float, similarity: float | None, scales: float | None, size: float) -> list[str]:
    measured = ("–" if value is None else f"{value:.3f}" for value in (similarity, scales))
    return [f"{decibels:.2f}", *measured, f"{size:,.0f}"]


def _codes_per_region(evaluation: Evaluation) -> float:
    return sum(share * 4**g for g, share in enumerate(evaluation.ratios))
