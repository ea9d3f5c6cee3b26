"""The small suite: every claim of the laboratory, on two CPU cores.

Command   python -m experiments.run configs/suite_small.py
          python -m experiments.run configs/suite_small.py --quick   (every figure, roughly)

What its members share is for short runs. The learning rate stays at its peak until the last 30 %
of the steps (--optimizer.decay-share 1.0 is the cosine from the start). Attention has two heads,
and four where it learns late with two (small/recall_long.py has both, small/adding.py four); SSD
and the delta rule have one, which gives them their largest state (small/recall.py has SSD with two
as well). Four learning rates are tried on recall, copying and digits, three on induction; on the
rest the two that some model there chose. Seeds begin at 100: on those from 0 (and, of four heads,
from 200) all of this was found. small/induction_long.py takes as long as three others and is run on
its own.
"""

from experiments.config import Suite


def get_config() -> Suite:
    """Returns the suite."""
    return Suite(
        claim=(
            "Attention captures dependency at every distance, at a width that does not depend on "
            "the length; at equal width and the same sweep, mixers with a bounded state or a "
            "bounded receptive field do so up to their bound."
        ),
        seed=100,
        members=(
            "small/recall.py",
            "small/copy_fixed.py",
            "small/copy.py",
            "small/width.py",
            "small/text.py",
            "small/digits.py",
            "small/induction.py",
            "small/recall_long.py",
            "small/copy_memory.py",
            "small/selective_copy.py",
            "small/prefix_key.py",
            "small/adding.py",
        ),
    )
