"""Noise-padded digits: a real image, row by row, then noise; at the end, say what it was."""

import dataclasses
import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from experiments.tasks.task import Batch, Floor, Split

SIZE = 8
"""The images are 8 rows of 8 pixels."""
FOLDS = 5
"""Parts of the images: one to test on, one to choose on, the others to learn from."""


class Digits(NamedTuple):
    """M images with what they show; the arrays that ``NoisyDigits.sample`` draws from."""

    images: Any
    """Pixels, standardised, float32 ``[M, 8, 8]``."""
    labels: Any
    """The digits, int32 ``[M]`` in 0..9."""


@functools.lru_cache(maxsize=1)
def _read() -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the task noisy_digits reads its images from scikit-learn: pip install scikit-learn"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return pixels.reshape(-1, SIZE, SIZE), labels.astype(np.int32)


@functools.lru_cache(maxsize=15)
def _load(split: Split, fold: int) -> Digits:
    pixels, labels = _read()
    is_digit = labels[:, None] == np.arange(10)[None, :]
    nth_of_its_digit = np.take_along_axis(is_digit.cumsum(axis=0), labels[:, None], axis=1)[:, 0]
    fifth = (nth_of_its_digit - fold) % FOLDS
    parts = {"train": fifth >= 2, "valid": fifth == 1, "test": fifth == 0}
    train, chosen = pixels[parts["train"]], parts[split]
    images = ((pixels[chosen] - train.mean()) / train.std()).astype(np.float32)
    digits = Digits(images, labels[chosen])
    for array in digits:
        array.setflags(write=False)
    return digits


@dataclasses.dataclass(frozen=True)
class NoisyDigits:
    """Classification of a small image after a long stretch of noise.

    A row is the 8 pixel rows of an image, top first, as 8 positions of 8 features, then L - 8
    positions of 8 independent standard normal features. The image itself stays clean::

        asked at  L - 1        answer    the digit, 0..9
        source    7, the last of the 8 positions that it spans; distance L - 8

    Images are scikit-learn's 1,797 digits of 8 x 8 pixels (UCI optical recognition of handwritten
    digits), drawn with replacement. Counting the images of each digit from 1, those whose number
    is ``fold`` modulo 5 are in the test split, those after them in the validation split.
    Pixels are standardised by one mean and one standard deviation, those of all pixels of the
    training split, so that they are on the scale of the noise.

    References:
        Chang et al., AntisymmetricRNN (arXiv 1902.09689), noise-padded CIFAR-10.

    Example:
        Bright pixels are drawn as #: eight rows of a two, then four of noise.

        >>> task = NoisyDigits(length=12)
        >>> batch = task.sample(jax.random.key(0), 1, task.load("test"))
        >>> for row in batch.inputs[0]:
        ...     print("".join("#" if pixel > 0 else "." for pixel in row))
        ..###...
        .####...
        ..#.#...
        ....#...
        ...##...
        ..###...
        ..#####.
        ..####..
        ..#....#
        .#.#...#
        ......##
        ..##.#..
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [11]
        targets [2]
        sources [7]
        distances [4]
    """

    length: int = 128
    """L, the positions of a row: 8 pixel rows, the others noise; at least 8."""
    fold: int = 0
    """Which fifth of the images is the test split, in 0..4: every image is in one of them."""

    # Not annotated: constants of the task, not settings.
    vocab_size = None
    num_features = SIZE
    num_classes = 10
    source_width = SIZE

    def __post_init__(self):
        """Refuse rows too short for the image, and a part that there is not."""
        if self.length < SIZE:
            raise ValueError(
                f"length is {self.length}, expected at least {SIZE}, the pixel rows of an image"
            )
        if not 0 <= self.fold < FOLDS:
            raise ValueError(f"fold is {self.fold}, expected one in 0..{FOLDS - 1}")

    def with_length(self, length: int) -> "NoisyDigits":
        """The same images with more or less noise; ``length`` at least 8."""
        return dataclasses.replace(self, length=length)

    def load(self, split: Split) -> Digits:
        """The standardised images of the split.

        Raises:
            ImportError: scikit-learn is not installed.
        """
        return _load(split, self.fold)

    def describe(self) -> str:
        """One line: what a row is, and the images' origin, number and hash."""
        pixels, labels = _read()
        digest = hashlib.sha256(pixels.astype(np.uint8).tobytes() + labels.tobytes()).hexdigest()
        return (
            f"noise-padded digits: an image of {SIZE} rows, then {self.length - SIZE} of noise, "
            f"from scikit-learn's digits ({len(labels)} images, sha256 {digest[:12]})"
        )

    def floors(self, data: Digits) -> dict[str, Floor]:
        """Always the most frequent digit; the entropy of the digits of ``data``."""
        return {"chance": Floor.of_counts(np.bincount(np.asarray(data.labels)))}

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` images drawn from ``data`` with one answer each (A = 1)."""
        if not isinstance(data, Digits):
            raise ValueError(f"data is {type(data).__name__}, expected what load returns")
        rng_index, rng_noise = jax.random.split(rng)
        index = jax.random.randint(rng_index, (batch_size,), 0, len(data.labels), jnp.int32)
        shape = (batch_size, self.length - SIZE, SIZE)
        noise = jax.random.normal(rng_noise, shape, jnp.float32)
        return Batch(
            inputs=jnp.concatenate([jnp.asarray(data.images)[index], noise], axis=1),
            positions=jnp.full((batch_size, 1), self.length - 1, jnp.int32),
            targets=jnp.asarray(data.labels)[index][:, None],
            sources=jnp.full((batch_size, 1), SIZE - 1, jnp.int32),
        )
