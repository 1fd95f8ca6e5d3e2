"""``VectorQuantize`` of vector-quantize-pytorch 1.32, computing with dqcore's kernels.

Change the import and nothing else: ``from dqcore.compat.vector_quantize_pytorch import VectorQuantize``. The other
package need not be installed.

The codes are exact: of the vectors and codes as float32 holds them, the code at the smallest distance (with
``use_cosine_sim`` the greatest product), compared in float64, the lowest index on ties. The other package compares
rounded float32 distances, so a few of its codes are not the nearest ones.
"""

from dqcore.compat.vector_quantize_pytorch.layer import VectorQuantize
from dqcore.compat.vector_quantize_pytorch.losses import LossBreakdown

__all__ = ["LossBreakdown", "VectorQuantize"]
