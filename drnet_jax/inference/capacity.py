"""A fixed number of places a resolution in every batch, and which images get them.

As experts of a mixture have a capacity (Riquelme et al. 2021, arXiv 2106.05974) and choose their
tokens (Zhou et al. 2022, arXiv 2202.09368): the work of a batch is then known before it runs.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnet_jax.inference.arguments import check_count


def capacities_of(shares: Sequence[float], batch_size: int) -> tuple[int, ...]:
    """Places a resolution, in proportion to the shares, that add up to the batch.

    By largest remainders (Hamilton's method), exactly: every resolution gets its quota rounded
    down, and those with the largest remainders one more each, of equal remainders the first.

    Args:
      shares: `[m]`, of any sum: of a `Point` of a calibration, or numbers of images.
      batch_size: images of a batch.

    Raises:
      ValueError: shares that are not finite, below zero or all zero, or a batch of no image.
    """
    check_count("batch_size", batch_size, least=1)
    good = all(isinstance(s, Real) and np.isfinite(float(s)) and s >= 0 for s in shares)
    if not good or not sum(shares):
        raise ValueError(f"shares={shares!r} must be finite, zero or more, and not all zero")
    # Of fractions: rounding decides nothing.
    exact = [Fraction(float(share)) for share in shares]
    quotas = [share * batch_size / sum(exact) for share in exact]
    places = [int(quota) for quota in quotas]
    order = sorted(range(len(quotas)), key=lambda j: places[j] - quotas[j])
    for j in order[: batch_size - sum(places)]:
        places[j] += 1
    return tuple(places)


def checked_capacities(
    capacities: Sequence[int] | None, batch_size: int, num_resolutions: int
) -> tuple[int, ...] | None:
    """The places a resolution as integers of Python; None of a single image.

    Raises:
      ValueError: they are not `[m]` integers from zero to the batch's size, they hold fewer images
        than a batch has, or a single image is given any.
    """
    if batch_size == 1:
        if capacities is not None:
            raise ValueError(
                f"capacities={capacities!r}: a batch of one image has none, it gets the resolution "
                "that it chooses; leave them out"
            )
        return None
    given = tuple(capacities) if isinstance(capacities, Iterable) else ()
    if len(given) != num_resolutions:
        raise ValueError(
            f"capacities={capacities!r} must be places for each of {num_resolutions} resolutions "
            f"in a batch of {batch_size}: capacities_of(shares, {batch_size}) gives them"
        )
    for places in given:
        check_count("a capacity", places)
    if max(given) > batch_size or sum(given) < batch_size:
        raise ValueError(
            f"capacities={capacities!r} must have places for a batch of {batch_size} images, and "
            "no resolution more than those"
        )
    return tuple(int(places) for places in given)


def assign(
    values: jax.Array, capacities: Sequence[int], count: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    """Gives every image a place at a resolution, in a compiled program.

    Resolution by resolution, the largest first. Of the images left, those that prefer it to all
    later ones want it: at least as good a value, so that the first of equals is preferred, as by
    `choose`. They get it if it has so many places, and more than those get it if the later ones
    have too few places for the rest. By what they gain over the best later one, the most first, of
    equal gains the first image.

    Where every resolution has as many places as images that choose it, or more, every image gets
    its choice: what wants a resolution is then what chooses it, since all that chose an earlier one
    are gone, and it is neither more than its places nor fewer than the later ones leave over. With
    two resolutions the sum of the values is the largest that the places allow. With three or more
    it need not be, where the places are not the choices: the largest takes its own first.

    Padding takes no place: the images of a batch that is not full get what they choose as far as
    the places allow. With as many places as a full batch has images, all places of that are taken.

    Args:
      values: `[n, m]`, of every resolution to every image.
      capacities: `[m]` places; n or more together.
      count: `[]` how many images are real; the others come after them.

    Returns:
      Resolutions `[n]` int32 by index, which mean nothing from `count` on, and for each resolution
      the rows `[capacity]` of its images; n stands for a place that none has.
    """
    n, m = values.shape
    rows = jnp.arange(n, dtype=jnp.int32)
    left = rows < count
    choices = jnp.zeros(n, jnp.int32)
    placed = []
    for j, capacity in enumerate(capacities):
        best_later = values[:, j + 1 :].max(axis=1, initial=-jnp.inf)
        wants = left & (values[:, j] >= best_later)
        gain = values[:, j] - best_later
        # First what wants it, then what else is left.
        rank = jnp.where(wants, 0, jnp.where(left, 1, 2))
        _, _, order = lax.sort((rank, -gain, rows), num_keys=3)
        num_left, later = left.sum(), sum(capacities[j + 1 :])
        taken = jnp.clip(
            wants.sum(), jnp.maximum(num_left - later, 0), jnp.minimum(num_left, capacity)
        )
        mine = jnp.where(rows < taken, order, n)[:capacity]
        choices = choices.at[mine].set(j, mode="drop")
        left = left.at[mine].set(False, mode="drop")
        placed.append(mine)
    return choices, placed
