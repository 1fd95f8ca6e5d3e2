"""Numbers that all who walk a tape agree on: kernels, specifications, models. This file needs no Triton."""

from __future__ import annotations

#: Statuses of an entry: it may not be taken, it may be taken or passed over, it must be taken.
BANNED, POSSIBLE, MANDATORY = 0, 1, 2

#: What is kept of a token, column by column: the least and the largest content that it may have (equal if its content
#: is known), the row of its position's embedding, its granularity, its entry, and the two random numbers that draw its
#: code and the position after it.
LEAST, MOST, ROW, GRAIN, ENTRY, FOR_CODE, FOR_POSITION = range(7)
WIDTH = FOR_POSITION + 1

#: Bits of a random number, and what probabilities are multiplied by: products of the two stay below 2**63.
BITS, WEIGHT = 23, 2.0**38
