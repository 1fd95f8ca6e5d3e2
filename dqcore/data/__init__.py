"""Images and codes on disk: reading, cropping, batches in a fixed order, and the photographs in the package."""

from dqcore.data.dataset import Images
from dqcore.data.images import (
    BrokenImageError,
    image_to_tensor,
    list_images,
    read_image,
    readable_images,
    split_images,
    tensor_to_image,
)

__all__ = [
    "BrokenImageError",
    "Images",
    "image_to_tensor",
    "list_images",
    "read_image",
    "readable_images",
    "split_images",
    "tensor_to_image",
]
