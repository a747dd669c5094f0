"""What hardware is behind an endpoint? TTFT and TPOT that were measured, against what chips and layouts would give.

rows = read_rows(Path("measured.csv"))                      # measurements.py has the form
field = Field(hypotheses, rows, predictor)                  # deployments.py makes both from plan.serving
verdict = identify(field, wanted_rows(spec))                # .chips, .hypotheses, .doubts, .next
"""

from tiefsee.plan.identify.field import Field
from tiefsee.plan.identify.hypothesis import Guess, Hypothesis, Observation, Predictor, Quantity, Row
from tiefsee.plan.identify.measurements import read_rows
from tiefsee.plan.identify.next import Next
from tiefsee.plan.identify.verdict import Verdict, identify

__all__ = [
    "Field", "Guess", "Hypothesis", "Next", "Observation", "Predictor", "Quantity", "Row", "Verdict",
    "identify", "read_rows",
]  # fmt: skip
