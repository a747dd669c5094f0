"""What would it take? Serving and training, on which chips, at what price, with ranges. No torch.

from tiefsee.plan import predict
answer = predict(kind="decode", model="v3", chip="h800", num_chips=128, layout={"dp": 128, "ep": 128}, precision="fp8",
                 batch=16384, isl=4096)
answer.value("tokens_per_s_per_chip"), answer.low("tokens_per_s_per_chip"), answer.high("tokens_per_s_per_chip")

The way of a question:

question.py   what is asked of serving, checked · names/ what its words mean
predictor.py  `predict`: one configuration in, figures with ranges out
times/        ideal seconds of operators and collectives · fitted/ what is left of the peaks
serving/      a deployment at work · training/ a training run, and reinforcement learning
answers.py    the model's figures, moved and ranged by what was measured nearby · figures/ what they are

search/       which layout · mixed/ unlike pools as one service · simulate/ the engine's scheduler, a virtual clock
documents/    what was found, told · report/ a document's four views
identify/     the question turned around: which chips could be behind an endpoint

evidence/     what was measured and published · fitting/ what is fitted from it · accuracy/ how well it predicts
data/         the files of these three

Each of them imports only from those that stand before it in tests/test_layers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiefsee.plan.figures.prediction import Prediction
    from tiefsee.plan.predictor import predict

__all__ = ["Prediction", "predict"]


def __getattr__(name: str) -> Any:
    if name == "predict":
        from tiefsee.plan.predictor import predict

        return predict
    if name == "Prediction":
        from tiefsee.plan.figures.prediction import Prediction

        return Prediction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
