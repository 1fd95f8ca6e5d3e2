"""The contract layer: every op has one name, one reference, one schema, and kernels that may be absent.

Dimensions: ``B`` batch, ``N`` vectors, ``K`` codes, ``D`` channels, ``H W`` finest grid, ``h w`` region grid (the
coarsest), ``G`` granularities, ``T`` codes of a packed batch.
"""

from dqcore.ops.code_sums import CodeSums, code_sums
from dqcore.ops.dynamic_lookup import Lookup, dynamic_lookup
from dqcore.ops.nearest_code import nearest_code

__all__ = ["CodeSums", "Lookup", "code_sums", "dynamic_lookup", "nearest_code"]
