"""Under which title the help lists an option; an option of one name has one title in every verb."""

from __future__ import annotations

__all__ = ["GROUPS", "REST", "group_of"]

REST = "options"

#: Title, and the names of its options as in Python.
GROUPS = {
    "files": (
        "data codes tokenizer prior checkpoint config images out validation validation_share init_from resume twin to "
        "format packing overwrite json strip preview shard_size keep vgg_weights test page compare samples reference"
    ),
    "how many codes": "ratio num_codes per_megapixel exact bytes bpp ratios",
    "sets of images": "metrics network inception_weights resize_by",
    "how long": "steps epochs minutes scale seeds minutes_per_run",
    "network": (
        "recipe preset codebook_size initialisation restart dropout label_dropout position_layers content_layers start"
    ),
    "images": (
        "height width image_size preprocessing resize crop flip fast_jpeg in_memory views encode_batch size limit "
        "photos peers max_pixels crops encoding quality patch_size classes"
    ),
    "optimiser": (
        "token_budget base_learning_rate learning_rate schedule warmup_epochs warmup_steps weight_decay "
        "gradient_clip average_decay accumulate"
    ),
    "losses and router": (
        "reconstruction perceptual perceptual_weight discriminator discriminator_start discriminator_dim "
        "adversarial_maximum target_ratio budget_weight budget threshold_images"
    ),
    "drawing": (
        "count label temperature top_k top_p position_temperature position_top_k position_top_p guidance slots"
    ),
    "log and checkpoints": "log_every validate_every checkpoint_every checkpoint_minutes keep_every tensorboard",
    "machine": (
        "plain_ops device precision cache workers batch_size compile checkpoint_activations shard seed jobs timeout"
    ),
}
_GROUP = {name: title for title, names in GROUPS.items() for name in names.split()}


def group_of(name: str) -> str:
    """The title of an option's group; that of an option that is not named above is :data:`REST`."""
    return _GROUP.get(name, REST)
