"""The laws of attention, for anyone's function: a conformance suite.

    report = attn.testing.check(my_attention)
    print(report)

or one test for each law, by pytest:

    @pytest.mark.parametrize("law", attn.testing.LAWS)
    def test_my_attention(law):
        attn.testing.run(law, my_attention)

or ``python -m attn.testing my_module:my_attention``. A law that needs what the function does not
take is not offered; a law that does not hold says so in one line, with figures. The oracle is the
formula alone, in float64, and uses nothing of the library.

A new law is a function with a docstring under ``@attn.testing.law(...)``, here in the file of its
group or anywhere else.
"""

from attn.testing import (
    derivatives,
    masking,
    memory,
    precision,
    refusals,
    residual,
    transforms,
    values,
)
from attn.testing.case import FEATURES
from attn.testing.examine import check, run
from attn.testing.laws import LAWS, Law, law
from attn.testing.report import Report, Result

__all__ = ["FEATURES", "LAWS", "Law", "Report", "Result", "check", "law", "run"]

# Groups in the order in which a report is read, whatever the order of imports.
_MODULES = (values, derivatives, residual, masking, precision, transforms, refusals, memory)
_GROUPS = [module.__name__.rpartition(".")[2] for module in _MODULES]
LAWS.sort(key=lambda law: _GROUPS.index(law.group))
