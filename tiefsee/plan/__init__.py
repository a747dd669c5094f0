"""What would it take? Serving and training, on which chips, at what price, with ranges. No torch.

from tiefsee.plan import predict
answer = predict(kind="decode", model="v3", chip="h800", num_chips=128, layout={"dp": 128, "ep": 128}, precision="fp8",
                 batch=16384, isl=4096)
answer.value("tokens_per_s_per_chip"), answer.low("tokens_per_s_per_chip"), answer.high("tokens_per_s_per_chip")

predictor.py   `predict` · question.py · answers.py · prediction.py, estimate.py what an answer is
terms.py, collectives.py, formats.py, serving.py, deployment.py     the model of time
efficiency.py, neighbours.py, calibrated.py                         what was fitted · calibrate.py and what it needs
search/, mixed.py, simulate/, memory.py                             layouts, pools, queues
training/, rollout.py                                               pretraining, failures, reinforcement learning
points.py, measured.py, accuracy.py and others                      figures, and how good predictions are
report/, sensitivity.py, identify/, money.py                        answers for people
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiefsee.plan.prediction import Prediction
    from tiefsee.plan.predictor import predict

__all__ = ["Prediction", "predict"]


def __getattr__(name: str) -> Any:
    if name == "predict":
        from tiefsee.plan.predictor import predict

        return predict
    if name == "Prediction":
        from tiefsee.plan.prediction import Prediction

        return Prediction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
