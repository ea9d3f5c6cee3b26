"""The small suite: every claim of the laboratory, on two CPU cores.

Command   python -m experiments.run configs/suite_small.py
          python -m experiments.run configs/suite_small.py --quick   (every figure, roughly)
Minutes   112 from start to page, and 9, on two cores (seeds 400 at commit ee7b6a3, with other work
          beside it; --quick alone)

What its members share is for short runs. The learning rate stays at its peak until the last 30 % of
the steps, the last half where an error or a loss is to become small (adding, text);
--optimizer.decay-share 1.0 is the cosine from the start. One grid of four rates is tried by every
model: in so few steps 3e-4 was the best of none. Attention has two heads, and four on the longer
rows of recall and on adding, where it learns late with two; SSD and the delta rule have one, which
gives them their largest state. Seeds begin at 200: with those from 0, 100 and 300 all of this was
found and rehearsed, but for what was changed after a first run on 200 (README).

small/recall_long.py and small/induction_long.py, of the longest rows, and small/width.py, of the
shortest, are run on their own.
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
        seed=200,
        members=(
            "small/recall.py",
            "small/no_convolution.py",
            "small/width_long.py",
            "small/induction.py",
            "small/copy.py",
            "small/copy_fixed.py",
            "small/prefix_key.py",
            "small/copy_memory.py",
            "small/selective_copy.py",
            "small/text.py",
            "small/digits.py",
            "small/adding.py",
        ),
    )
